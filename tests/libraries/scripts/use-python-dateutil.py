# /// script
# dependencies = ["python-dateutil"]
#
# [tool.will-it-run]
# does = "reads a date and repeats it by rule"
# expects = ["2026-01-30", "2026-02-27", "2026-03-27"]
# ///
from dateutil.parser import parse
from dateutil.rrule import FR, MONTHLY, rrule

result = [f"{day:%Y-%m-%d}" for day in rrule(MONTHLY, byweekday=FR(-1), count=3, dtstart=parse("1 Jan 2026 10:00"))]
