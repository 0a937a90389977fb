# /// script
# dependencies = ["scikit-learn"]
#
# [tool.will-it-run]
# does = "trains a random forest with two jobs"
# expects = true
# quick = true
# ///
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

x, y = load_iris(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=0)
model = RandomForestClassifier(50, n_jobs=2, random_state=0).fit(x_train, y_train)
result = model.score(x_test, y_test) > 0.9
