# /// script
# dependencies = ["seaborn"]
#
# [tool.will-it-run]
# does = "draws a box plot of a table"
# expects = "boxes.png"
# ///
import pandas as pd
import seaborn as sns

table = pd.DataFrame({"sensor": ["roof", "roof", "cellar", "cellar"], "value": [20, 22, 8, 9]})
axes = sns.boxplot(table, x="sensor", y="value")
axes.figure.savefig("boxes.png")
save_file("boxes.png")
result = "boxes.png"
