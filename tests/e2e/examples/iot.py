import pandas as pd
import numpy as np
from datetime import datetime

log("Analyse des données IoT démarrée")

# Conversion des données capteurs
if isinstance(payload, list):
    df = pd.DataFrame(payload)
    
    # Calculs statistiques
    stats = {
        'temperature_moyenne': df['temperature'].mean(),
        'humidite_max': df['humidity'].max(),
        'nb_mesures': len(df),
        'periode': f"{df['timestamp'].min()} à {df['timestamp'].max()}"
    }
    
    # Détection d'anomalies
    temp_std = df['temperature'].std()
    temp_mean = df['temperature'].mean()
    anomalies = df[
        (df['temperature'] > temp_mean + 2*temp_std) |
        (df['temperature'] < temp_mean - 2*temp_std)
    ]
    
    result = {
        'statistiques': stats,
        'anomalies': anomalies.to_dict('records'),
        'statut': 'analysé'
    }
    
    # Sauvegarde pour historique
    save_file('analyse_iot.json', pd.DataFrame([stats]).to_json())
    
    log(f"Analyse terminée: {len(anomalies)} anomalies détectées")
    
else:
    result = {'erreur': 'Format de données invalide'}
    log("Erreur: données non conformes", "error")

output_topic = f"iot/analysis/{topic}"
