# /// script
# dependencies = ["numpy"]
#
# [tool.will-it-run]
# does = "solves a system of linear equations"
# expects = [2.0, 3.0]
# quick = true
# ///
import numpy as np

a = np.array([[3, 1], [1, 2]])
b = np.array([9, 8])
result = np.linalg.solve(a, b).round(6)
