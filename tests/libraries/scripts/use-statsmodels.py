# /// script
# dependencies = ["statsmodels"]
#
# [tool.will-it-run]
# does = "fits a line by least squares, with its summary"
# expects = [1.0, 2.0]
# ///
import numpy as np
import statsmodels.api as sm

x = np.arange(20.0)
y = 1 + 2 * x + np.tile([0.1, -0.1, -0.1, 0.1], 5)
fit = sm.OLS(y, sm.add_constant(x)).fit()
print(fit.summary())
result = fit.params.round(1)
