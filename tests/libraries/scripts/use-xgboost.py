# /// script
# dependencies = ["xgboost", "scikit-learn"]
#
# [tool.will-it-run]
# does = "trains a classifier"
# expects = true
# ///
import numpy as np
import xgboost as xgb

x = np.random.default_rng(0).random((500, 4))
y = (x[:, 0] > 0.5).astype(int)
model = xgb.XGBClassifier(n_estimators=20).fit(x, y)
result = bool(model.score(x, y) > 0.95)
