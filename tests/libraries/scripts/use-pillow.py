# /// script
# dependencies = ["pillow"]
#
# [tool.will-it-run]
# does = "draws text, scales down and encodes JPEG and WebP"
# expects = [[40, 30], [40, 30]]
# quick = true
# ///
from io import BytesIO

from PIL import Image, ImageDraw, ImageFilter

picture = Image.new("RGB", (400, 300), "white")
ImageDraw.Draw(picture).text((20, 20), "Grüße", fill="black", font_size=40)
picture = picture.filter(ImageFilter.GaussianBlur(2))
picture.thumbnail((40, 40))
result = []
for kind in ("JPEG", "WEBP"):
    file = BytesIO()
    picture.save(file, kind)
    result.append(Image.open(BytesIO(file.getvalue())).size)
