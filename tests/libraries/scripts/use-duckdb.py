# /// script
# dependencies = ["duckdb"]
#
# [tool.will-it-run]
# does = "queries a CSV file with SQL"
# expects = [["north", 7], ["south", 5]]
# ///
import duckdb

with open("/tmp/sales.csv", "w") as file:
    file.write("shop,sold\nnorth,3\nsouth,5\nnorth,4\n")
query = "SELECT shop, sum(sold)::INTEGER FROM '/tmp/sales.csv' GROUP BY shop ORDER BY shop"
result = [list(row) for row in duckdb.sql(query).fetchall()]
