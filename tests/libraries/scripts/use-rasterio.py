# /// script
# dependencies = ["rasterio"]
#
# [tool.will-it-run]
# does = "writes a GeoTIFF and reads its bounds and values"
# expects = [[10.0, 48.0, 12.0, 50.0], 4.0]
# ///
import numpy as np
import rasterio
from rasterio.transform import from_bounds

shape = {"height": 2, "width": 2, "count": 1, "dtype": "float32"}
with rasterio.open(
    "/tmp/a.tif", "w", driver="GTiff", crs="EPSG:4326", transform=from_bounds(10, 48, 12, 50, 2, 2), **shape
) as file:
    file.write(np.float32([[1, 2], [3, 4]]), 1)
with rasterio.open("/tmp/a.tif") as file:
    result = [list(file.bounds), file.read(1).max()]
