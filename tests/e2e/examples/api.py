import requests
import json
from bs4 import BeautifulSoup
import pandas as pd
from datetime import datetime
import time

log("Récupération de données externes démarrée")

try:
    # Configuration des APIs depuis le payload
    config = payload.get('api_config', {})
    base_url = config.get('base_url', 'https://api.example.com')
    api_key = config.get('api_key', '')
    
    collected_data = []
    
    # 1. Récupération via API REST
    if 'api_endpoints' in config:
        for endpoint in config['api_endpoints']:
            headers = {'Authorization': f'Bearer {api_key}'}
            
            log(f"Appel API: {endpoint}")
            response = requests.get(f"{base_url}/{endpoint}", headers=headers, timeout=10)
            
            if response.status_code == 200:
                api_data = response.json()
                collected_data.extend(api_data.get('data', []))
                log(f"API {endpoint}: {len(api_data.get('data', []))} éléments récupérés")
            else:
                log(f"Erreur API {endpoint}: {response.status_code}", "warning")
            
            time.sleep(1)  # Rate limiting
    
    # 2. Web scraping si configuré
    if 'scraping_urls' in config:
        for url_config in config['scraping_urls']:
            url = url_config['url']
            selector = url_config.get('selector', 'p')
            
            log(f"Scraping: {url}")
            response = requests.get(url, timeout=10)
            
            if response.status_code == 200:
                soup = BeautifulSoup(response.content, 'html.parser')
                elements = soup.select(selector)
                
                scraped_data = []
                for elem in elements[:10]:  # Limiter à 10 éléments
                    scraped_data.append({
                        'text': elem.get_text().strip(),
                        'tag': elem.name,
                        'url_source': url
                    })
                
                collected_data.extend(scraped_data)
                log(f"Scraping {url}: {len(scraped_data)} éléments extraits")
            
            time.sleep(2)  # Rate limiting pour scraping
    
    # 3. Traitement et analyse des données collectées
    if collected_data:
        df = pd.DataFrame(collected_data)
        
        # Nettoyage des données
        if 'text' in df.columns:
            df['text_length'] = df['text'].str.len()
            df['word_count'] = df['text'].str.split().str.len()
        
        # Statistiques descriptives
        stats = {
            'total_records': len(df),
            'data_sources': len(config.get('api_endpoints', [])) + len(config.get('scraping_urls', [])),
            'collection_timestamp': datetime.now().isoformat()
        }
        
        # Ajout de statistiques spécifiques selon les colonnes
        if 'text_length' in df.columns:
            stats.update({
                'avg_text_length': float(df['text_length'].mean()),
                'max_text_length': int(df['text_length'].max()),
                'total_words': int(df['word_count'].sum())
            })
        
        # Sauvegarde des données
        save_file('collected_data.json', df.to_json(orient='records', indent=2))
        save_file('collection_stats.json', json.dumps(stats, indent=2))
        
        result = {
            'status': 'success',
            'data': collected_data[:100],  # Limiter la sortie
            'statistics': stats,
            'full_data_available': len(collected_data) > 100
        }
        
        log(f"Collection terminée: {len(collected_data)} éléments traités")
        
    else:
        result = {
            'status': 'no_data',
            'message': 'Aucune donnée collectée',
            'configuration': config
        }
        log("Aucune donnée collectée", "warning")

except requests.RequestException as e:
    result = {'erreur': f'Erreur réseau: {str(e)}'}
    log(f"Erreur de requête: {e}", "error")

except Exception as e:
    result = {'erreur': f'Erreur de traitement: {str(e)}'}
    log(f"Erreur inattendue: {e}", "error")

output_topic = f"data/external/{topic}"
additional_data = {
    'collection_method': 'api_scraping',
    'libraries_used': ['requests', 'beautifulsoup4', 'pandas'],
    'rate_limited': True
}
