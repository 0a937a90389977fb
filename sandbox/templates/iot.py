"""IoT sensor statistics: averages, extremes and outliers per sensor, with the standard library."""

import csv
import io
import statistics
from collections import defaultdict

log(f"{len(payload)} readings received")

by_sensor = defaultdict(list)
for reading in payload:
    if reading["temperature"] is not None and reading["humidity"] is not None:
        by_sensor[reading["sensor"]].append(reading)

sensors, outliers = {}, []
for name, readings in sorted(by_sensor.items()):
    temperatures = [r["temperature"] for r in readings]
    mean, deviation = statistics.fmean(temperatures), statistics.stdev(temperatures)
    sensors[name] = {
        "readings": len(readings),
        "temperature_mean": round(mean, 2),
        "temperature_min": min(temperatures),
        "temperature_max": max(temperatures),
        "temperature_stdev": round(deviation, 2),
        "humidity_mean": round(statistics.fmean(r["humidity"] for r in readings), 1),
    }
    outliers += [r for r in readings if abs(r["temperature"] - mean) > 4 * deviation]

dropped = len(payload) - sum(len(readings) for readings in by_sensor.values())
if dropped:
    log(f"{dropped} readings without a value were left out", "warning")

table = io.StringIO()
writer = csv.DictWriter(table, fieldnames=["timestamp", "sensor", "temperature", "humidity"])
writer.writeheader()
writer.writerows(outliers)
save_file("outliers.csv", table.getvalue())

result = {
    "period": [min(r["timestamp"] for r in payload), max(r["timestamp"] for r in payload)],
    "sensors": sensors,
    "outliers": outliers,
}
output_topic = f"{topic or 'iot'}/statistics"
additional_data = {"readings": len(payload), "dropped": dropped}
