# /// script
# dependencies = ["plotly"]
#
# [tool.will-it-run]
# does = "makes an interactive chart as HTML"
# expects = true
# ///
import plotly.graph_objects as go

figure = go.Figure(go.Scatter(x=[1, 2, 3], y=[4, 1, 2]))
page = figure.to_html(include_plotlyjs="cdn")
save_file("chart.html", page)
result = "Plotly.newPlot" in page
