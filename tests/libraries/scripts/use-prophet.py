# /// script
# dependencies = ["prophet", "plotly"]
#
# [tool.will-it-run]
# does = "forecasts a week of a series with a weekly pattern"
# expects = true
# stderr = "cmdstanpy"
# ///
import numpy as np
import pandas as pd
from prophet import Prophet

days = pd.date_range("2026-01-01", periods=120)
table = pd.DataFrame({"ds": days, "y": 10 + 3 * (days.day_of_week < 5) + 0.01 * np.arange(120)})
model = Prophet(weekly_seasonality=True, yearly_seasonality=False, daily_seasonality=False).fit(table)
ahead = model.predict(model.make_future_dataframe(7)).tail(7)
expected = 10 + 3 * (ahead.ds.dt.day_of_week < 5) + 0.01 * np.arange(120, 127)
result = bool(abs(ahead.yhat - expected).max() < 0.5)
