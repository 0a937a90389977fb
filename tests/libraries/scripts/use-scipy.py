# /// script
# dependencies = ["scipy"]
#
# [tool.will-it-run]
# does = "finds a minimum and integrates a function"
# expects = {"at" = 2.0, "area" = 2.0}
# ///
import numpy as np
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

found = minimize_scalar(lambda x: (x - 2) ** 2)
area, _ = quad(np.sin, 0, np.pi)
result = {"at": round(found.x, 4), "area": round(area, 6)}
