# /// script
# dependencies = ["geopandas"]
#
# [tool.will-it-run]
# does = "projects places, writes a GeoPackage, and measures a distance in it"
# expects = [2, 879]
# ///
import geopandas as gpd

places = gpd.GeoDataFrame(
    {"name": ["Berlin", "Paris"]}, geometry=gpd.points_from_xy([13.4, 2.35], [52.5, 48.85]), crs="EPSG:4326"
)
places.to_crs("EPSG:3035").to_file("/tmp/places.gpkg")
read = gpd.read_file("/tmp/places.gpkg")
result = [len(read), round(read.geometry[0].distance(read.geometry[1]) / 1000)]
