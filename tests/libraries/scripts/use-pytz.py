# /// script
# dependencies = ["pytz"]
#
# [tool.will-it-run]
# does = "converts a time to another zone, across the change to summer time"
# expects = "2026-03-29 03:30 CEST"
# ///
from datetime import datetime

import pytz

noted = pytz.utc.localize(datetime(2026, 3, 29, 1, 30))
result = f"{noted.astimezone(pytz.timezone('Europe/Berlin')):%Y-%m-%d %H:%M %Z}"
