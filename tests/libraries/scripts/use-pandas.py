# /// script
# dependencies = ["pandas"]
#
# [tool.will-it-run]
# does = "groups a CSV file by sensor"
# expects = {"cellar" = 8.5, "roof" = 21.0}
# quick = true
# ///
from io import StringIO

import pandas as pd

csv = StringIO("sensor,when,value\nroof,2026-01-01 10:00,20\nroof,2026-01-01 11:00,22\ncellar,2026-01-01 10:00,8.5\n")
table = pd.read_csv(csv, parse_dates=["when"])
result = table.groupby("sensor")["value"].mean().to_dict()
