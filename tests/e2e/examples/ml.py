import pandas as pd
import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import classification_report, accuracy_score
import joblib
import json

log("Entraînement du modèle ML démarré")

try:
    # Charger les données d'entraînement
    if isinstance(payload, dict) and 'training_data' in payload:
        df = pd.DataFrame(payload['training_data'])
        
        # Préparer les features et targets
        feature_columns = [col for col in df.columns if col != 'target']
        X = df[feature_columns]
        y = df['target']
        
        log(f"Dataset: {len(df)} échantillons, {len(feature_columns)} features")
        
        # Division train/test
        X_train, X_test, y_train, y_test = train_test_split(
            X, y, test_size=0.2, random_state=42
        )
        
        # Entraînement du modèle
        model = RandomForestClassifier(
            n_estimators=100,
            random_state=42,
            max_depth=10
        )
        model.fit(X_train, y_train)
        
        # Évaluation
        y_pred = model.predict(X_test)
        accuracy = accuracy_score(y_test, y_pred)
        report = classification_report(y_test, y_pred, output_dict=True)
        
        # Importance des features
        feature_importance = dict(zip(
            feature_columns,
            model.feature_importances_.tolist()
        ))
        
        # Sauvegarder le modèle
        joblib.dump(model, '/app/trained_model.pkl')
        
        # Prédictions sur nouvelles données si fournies
        predictions = []
        if 'prediction_data' in payload:
            pred_df = pd.DataFrame(payload['prediction_data'])
            pred_results = model.predict(pred_df[feature_columns])
            pred_proba = model.predict_proba(pred_df[feature_columns])
            
            for i, (pred, proba) in enumerate(zip(pred_results, pred_proba)):
                predictions.append({
                    'sample_id': i,
                    'prediction': int(pred),
                    'confidence': float(max(proba)),
                    'probabilities': proba.tolist()
                })
        
        result = {
            'model_performance': {
                'accuracy': float(accuracy),
                'detailed_report': report,
                'feature_importance': feature_importance
            },
            'training_info': {
                'samples_train': len(X_train),
                'samples_test': len(X_test),
                'features_used': feature_columns
            },
            'predictions': predictions
        }
        
        # Sauvegarder les résultats
        save_file('ml_results.json', json.dumps(result, indent=2))
        save_file('model_info.txt', f"Accuracy: {accuracy:.3f}\nFeatures: {feature_columns}")
        
        log(f"Entraînement terminé - Accuracy: {accuracy:.3f}")
        
    else:
        result = {'erreur': 'Données d\'entraînement manquantes'}
        log("Erreur: format de données incorrect", "error")

except Exception as e:
    result = {'erreur': f'Erreur ML: {str(e)}'}
    log(f"Erreur lors de l'entraînement: {e}", "error")

output_topic = f"ml/model/{topic}"
additional_data = {
    'algorithm': 'RandomForest',
    'sklearn_version': '1.1.0',
    'model_saved': '/app/trained_model.pkl'
}
