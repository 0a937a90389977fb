# /// script
# dependencies = ["lightgbm"]
#
# [tool.will-it-run]
# does = "trains a regression"
# expects = true
# ///
import lightgbm as lgb
import numpy as np

x = np.random.default_rng(0).random((500, 4))
y = 3 * x[:, 0] + x[:, 1]
model = lgb.train({"objective": "regression", "verbose": -1}, lgb.Dataset(x, y), 50)
result = bool(np.corrcoef(model.predict(x), y)[0, 1] > 0.95)
