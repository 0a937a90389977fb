# /// script
# dependencies = ["h5py"]
#
# [tool.will-it-run]
# does = "writes compressed data and reads a slice"
# expects = [10, 11, 12]
# ///
import h5py
import numpy as np

with h5py.File("/tmp/data.h5", "w") as file:
    file.create_dataset("run/values", data=np.arange(100), compression="gzip")
with h5py.File("/tmp/data.h5") as file:
    result = file["run/values"][10:13]
