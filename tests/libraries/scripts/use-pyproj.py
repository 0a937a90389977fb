# /// script
# dependencies = ["pyproj"]
#
# [tool.will-it-run]
# does = "converts coordinates to UTM and measures a distance"
# expects = [391, 5817]
# ///
from pyproj import Geod, Transformer

east, north = Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(13.4, 52.5)
print(Geod(ellps="WGS84").inv(13.4, 52.5, 2.35, 48.85)[2])
result = [int(east / 1000), int(north / 1000)]
