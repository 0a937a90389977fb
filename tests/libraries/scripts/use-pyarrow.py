# /// script
# dependencies = ["pyarrow"]
#
# [tool.will-it-run]
# does = "writes a Parquet file and reads one column"
# expects = [1, 2, 3]
# ///
import pyarrow as pa
import pyarrow.parquet as pq

pq.write_table(pa.table({"n": [1, 2, 3], "name": ["a", "b", "c"]}), "/tmp/table.parquet")
result = pq.read_table("/tmp/table.parquet", columns=["n"])["n"].to_pylist()
