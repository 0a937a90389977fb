# /// script
# dependencies = ["rich"]
#
# [tool.will-it-run]
# does = "prints a table"
# expects = true
# ///
from rich.console import Console
from rich.table import Table

table = Table("sensor", "value", title="Readings")
table.add_row("roof", "21.5 °C")
console = Console(record=True)
console.print(table)
result = "roof" in console.export_text()
