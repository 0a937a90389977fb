# /// script
# dependencies = ["opencv-python-headless"]
# ///
"""Computer vision with OpenCV: find the objects of a JPEG, measure them, and mark them in the picture."""

import base64

import cv2
import numpy as np

SMALLEST_PX = 100
SHAPES = {3: "triangle", 4: "rectangle"}

image = cv2.imdecode(np.frombuffer(base64.b64decode(payload["image"]), np.uint8), cv2.IMREAD_COLOR)
if image is None:
    raise ValueError("payload['image'] is not a picture that OpenCV can read")
height, width = image.shape[:2]
log(f"picture of {width} x {height} pixels")

smooth = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (5, 5), 0)
contours, _ = cv2.findContours(cv2.Canny(smooth, 50, 150), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)

objects = []
for contour in contours:
    area = cv2.contourArea(contour)
    if area < SMALLEST_PX:
        continue
    corners = cv2.approxPolyDP(contour, 0.04 * cv2.arcLength(contour, True), True)
    x, y, w, h = cv2.boundingRect(contour)
    objects.append({"shape": SHAPES.get(len(corners), "round"), "x": x, "y": y, "width": w, "height": h, "area": area})
    cv2.rectangle(image, (x, y), (x + w, y + h), (0, 0, 255), 2)

written, marked = cv2.imencode(".jpg", image)
save_file("marked.jpg", marked.tobytes())

result = {"width": width, "height": height, "objects": sorted(objects, key=lambda found: (found["y"], found["x"]))}
output_topic = f"{topic or 'vision'}/objects"
