"""Files: write a CSV report, read it back, and hand it to the flow."""

import csv
import io

report = io.StringIO()
writer = csv.DictWriter(report, fieldnames=["machine", "hours"])
writer.writeheader()
writer.writerows(payload["machines"])

path = save_file("report.csv", report.getvalue())
again = read_file("report.csv")

result = {"saved_as": path, "lines": len(again.splitlines()), "hours": sum(m["hours"] for m in payload["machines"])}
