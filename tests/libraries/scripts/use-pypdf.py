# /// script
# dependencies = ["pypdf", "reportlab"]
#
# [tool.will-it-run]
# does = "joins two PDF files and reads their text"
# expects = ["page 1", "page 2"]
# ///
from io import BytesIO

from pypdf import PdfReader, PdfWriter
from reportlab.pdfgen.canvas import Canvas

writer = PdfWriter()
for number in (1, 2):
    file = BytesIO()
    canvas = Canvas(file)
    canvas.drawString(100, 700, f"page {number}")
    canvas.save()
    writer.append(file)
writer.write("both.pdf")
save_file("both.pdf")
result = [page.extract_text().strip() for page in PdfReader("both.pdf").pages]
