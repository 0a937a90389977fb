# /// script
# dependencies = ["opencv-python-headless"]
#
# [tool.will-it-run]
# does = "finds the contour of a rectangle"
# expects = [30, 20, 61, 41]
# ///
import cv2
import numpy as np

picture = np.zeros((100, 120), np.uint8)
cv2.rectangle(picture, (30, 20), (90, 60), 255, -1)
contours, _ = cv2.findContours(picture, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
result = cv2.boundingRect(contours[0])
