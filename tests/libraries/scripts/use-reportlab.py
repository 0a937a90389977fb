# /// script
# dependencies = ["reportlab"]
#
# [tool.will-it-run]
# does = "lays out a PDF with a table and a chart"
# expects = true
# ///
from reportlab.graphics.charts.barcharts import VerticalBarChart
from reportlab.graphics.shapes import Drawing
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.platypus import Paragraph, SimpleDocTemplate, Table

chart = VerticalBarChart()
chart.data = [(3, 5)]
drawing = Drawing(300, 150)
drawing.add(chart)
style = getSampleStyleSheet()["Title"]
SimpleDocTemplate("sales.pdf").build([Paragraph("Sales", style), Table([["north", 3], ["south", 5]]), drawing])
save_file("sales.pdf")
result = open("sales.pdf", "rb").read().startswith(b"%PDF-")
