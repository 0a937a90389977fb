# /// script
# dependencies = ["pandas"]
# ///
"""IoT with pandas: clean sensor readings, summarise them by the hour, and find those that stand out."""

import pandas as pd

readings = pd.DataFrame(payload)
readings["timestamp"] = pd.to_datetime(readings["timestamp"])
complete = readings.dropna()
if len(complete) < len(readings):
    log(f"{len(readings) - len(complete)} readings without a value were left out", "warning")

# The median and the spread around it stay what they are when a few readings are wildly off.
temperature = complete.groupby("sensor")["temperature"]
distance = (complete["temperature"] - temperature.transform("median")).abs()
spread = distance.groupby(complete["sensor"]).transform("median")
anomalies = complete[distance > 8 * spread]
log(f"{len(anomalies)} of {len(complete)} readings stand out")

normal = complete.drop(anomalies.index)
hourly = normal.set_index("timestamp").groupby("sensor").resample("1h")[["temperature", "humidity"]].mean().round(2)
save_file("hourly.csv", hourly.to_csv())

statistics = normal.groupby("sensor")["temperature"].agg(["count", "mean", "min", "max", "std"]).round(2)
result = {
    "period": [readings["timestamp"].min(), readings["timestamp"].max()],
    "sensors": statistics.to_dict("index"),
    "anomalies": anomalies,
}
output_topic = f"{topic or 'iot'}/statistics"
