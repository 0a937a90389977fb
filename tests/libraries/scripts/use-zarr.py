# /// script
# dependencies = ["zarr"]
#
# [tool.will-it-run]
# does = "writes a chunked array to files and reads a part"
# expects = [55.0, 100]
# ///
import numpy as np
import zarr

array = zarr.create_array("/tmp/data.zarr", shape=(100, 100), chunks=(10, 10), dtype="f8")
array[:] = np.arange(100)[None, :].repeat(100, axis=0)
again = zarr.open_array("/tmp/data.zarr", mode="r")
result = [again[7, 55], again.shape[0]]
