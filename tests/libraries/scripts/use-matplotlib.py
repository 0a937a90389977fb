# /// script
# dependencies = ["matplotlib"]
#
# [tool.will-it-run]
# does = "draws a chart as PNG and hands it over"
# expects = "chart.png"
# quick = true
# ///
import matplotlib.pyplot as plt

plt.plot([1, 2, 3], [20.1, 21.5, 19.8], label="roof")
plt.title("Temperature in °C")
plt.legend()
plt.savefig("chart.png")
save_file("chart.png")
result = "chart.png"
