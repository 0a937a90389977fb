# /// script
# dependencies = ["orjson"]
#
# [tool.will-it-run]
# does = "writes dates and NumPy arrays as JSON"
# expects = '{"at":"2026-01-01T00:00:00","n":[1,2]}'
# ///
from datetime import datetime

import orjson

result = orjson.dumps({"at": datetime(2026, 1, 1), "n": [1, 2]}, option=orjson.OPT_SORT_KEYS).decode()
