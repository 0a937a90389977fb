# /// script
# dependencies = ["pandas", "scikit-learn"]
# ///
"""Machine learning with scikit-learn: train a classifier on a table, test it, and predict new rows."""

import joblib
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, classification_report
from sklearn.model_selection import train_test_split

table = pd.DataFrame(payload["rows"])
labels = table.pop(payload["target"])
log(f"{len(table)} rows, features {', '.join(table.columns)}, classes {', '.join(sorted(labels.unique()))}")

rows, test_rows, classes, test_classes = train_test_split(
    table, labels, test_size=0.25, stratify=labels, random_state=42
)
model = RandomForestClassifier(n_estimators=100, max_depth=10, random_state=42).fit(rows, classes)
guessed = model.predict(test_rows)
log(f"tested on {len(test_rows)} rows")

new = pd.DataFrame(payload["new"])[table.columns]
predictions = [
    {"prediction": prediction, "confidence": round(max(chances), 3)}
    for prediction, chances in zip(model.predict(new), model.predict_proba(new))
]

joblib.dump(model, "model.joblib", compress=3)
save_file("model.joblib")

result = {
    "accuracy": accuracy_score(test_classes, guessed),
    "classes": classification_report(test_classes, guessed, output_dict=True),
    "importance": dict(zip(table.columns, model.feature_importances_)),
    "predictions": predictions,
}
output_topic = f"{topic or 'ml'}/model"
