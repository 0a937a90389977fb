# /// script
# dependencies = ["plotly", "kaleido"]
#
# [tool.will-it-run]
# library = "kaleido"
# does = "turns a plotly chart into a PNG"
# why_not = "Kaleido requires Google Chrome to be installed."
# instead = "save the chart as HTML, as the script of plotly does"
# ///
import plotly.graph_objects as go

figure = go.Figure(go.Bar(x=["a", "b"], y=[3, 5]))
figure.write_image("chart.png")
save_file("chart.png")
result = "chart.png"
