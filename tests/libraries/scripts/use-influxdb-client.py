# /// script
# dependencies = ["influxdb-client"]
#
# [tool.will-it-run]
# does = "writes points in line protocol"
# expects = "climate,sensor=roof temperature=21.5 1767225600000000000"
# ///
from datetime import datetime, timezone

from influxdb_client import Point

point = Point("climate").tag("sensor", "roof").field("temperature", 21.5)
result = point.time(datetime(2026, 1, 1, tzinfo=timezone.utc)).to_line_protocol()
