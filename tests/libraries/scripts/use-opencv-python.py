# /// script
# dependencies = ["opencv-python"]
#
# [tool.will-it-run]
# does = "reads and blurs a picture"
# why_not = "libxcb.so.1: cannot open shared object file: No such file or directory"
# instead = "ask for opencv-python-headless, which needs no screen"
# ///
import cv2
import numpy as np

_, encoded = cv2.imencode(".png", np.full((60, 80, 3), 127, np.uint8))
picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
result = cv2.GaussianBlur(picture, (5, 5), 0).shape
