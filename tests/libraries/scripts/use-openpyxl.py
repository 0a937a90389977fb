# /// script
# dependencies = ["openpyxl"]
#
# [tool.will-it-run]
# does = "writes a workbook with a formula and reads it"
# expects = [["shop", "sold"], ["north", 3], ["sum", "=SUM(B2:B2)"]]
# quick = true
# ///
from openpyxl import Workbook, load_workbook

book = Workbook()
for row in (["shop", "sold"], ["north", 3], ["sum", "=SUM(B2:B2)"]):
    book.active.append(row)
book.save("sales.xlsx")
save_file("sales.xlsx")
result = [list(row) for row in load_workbook("sales.xlsx").active.values]
