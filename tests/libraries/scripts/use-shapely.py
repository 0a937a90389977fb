# /// script
# dependencies = ["shapely"]
#
# [tool.will-it-run]
# does = "intersects two squares"
# expects = 1.0
# ///
from shapely import Point, box

result = box(0, 0, 2, 2).intersection(box(1, 1, 3, 3)).area
print(Point(0, 0).buffer(1).area)
