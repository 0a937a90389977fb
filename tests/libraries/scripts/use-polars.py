# /// script
# dependencies = ["polars"]
#
# [tool.will-it-run]
# does = "filters and sums a table lazily"
# expects = [{"shop" = "north", "sold" = 7}, {"shop" = "south", "sold" = 5}]
# ///
import polars as pl

sales = pl.LazyFrame({"shop": ["north", "south", "north"], "sold": [3, 5, 4]})
summed = sales.filter(pl.col("sold") > 0).group_by("shop").agg(pl.col("sold").sum()).sort("shop").collect()
result = summed.to_dicts()
