import cv2
import numpy as np
import base64
import json

log("Analyse d'image démarrée")

try:
    # Décoder l'image base64
    if isinstance(payload, dict) and 'image_data' in payload:
        image_data = base64.b64decode(payload['image_data'])
        
        # Sauvegarder l'image temporairement
        save_file('input_image.jpg', image_data)
        
        # Charger avec OpenCV
        image = cv2.imread('/app/input_image.jpg')
        
        if image is not None:
            # Détection de contours
            gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            blurred = cv2.GaussianBlur(gray, (5, 5), 0)
            edges = cv2.Canny(blurred, 50, 150)
            
            # Trouver les contours
            contours, _ = cv2.findContours(edges, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            
            # Analyser les objets
            objects = []
            for i, contour in enumerate(contours):
                area = cv2.contourArea(contour)
                if area > 100:  # Filtrer les petits objets
                    x, y, w, h = cv2.boundingRect(contour)
                    objects.append({
                        'id': i,
                        'position': {'x': int(x), 'y': int(y)},
                        'taille': {'width': int(w), 'height': int(h)},
                        'surface': float(area)
                    })
            
            # Dessiner les résultats
            result_image = image.copy()
            for obj in objects:
                x, y = obj['position']['x'], obj['position']['y']
                w, h = obj['taille']['width'], obj['taille']['height']
                cv2.rectangle(result_image, (x, y), (x+w, y+h), (0, 255, 0), 2)
            
            # Encoder l'image résultat
            _, buffer = cv2.imencode('.jpg', result_image)
            result_image_b64 = base64.b64encode(buffer).decode()
            
            result = {
                'objets_detectes': len(objects),
                'details_objets': objects,
                'image_analysee': result_image_b64,
                'resolution': {'width': image.shape[1], 'height': image.shape[0]}
            }
            
            save_file('analysis_result.json', json.dumps(result, indent=2))
            log(f"Analyse terminée: {len(objects)} objets détectés")
            
        else:
            result = {'erreur': 'Image non valide'}
            log("Erreur: impossible de charger l'image", "error")
    else:
        result = {'erreur': 'Données image manquantes'}
        log("Erreur: format de données incorrect", "error")

except Exception as e:
    result = {'erreur': f'Erreur de traitement: {str(e)}'}
    log(f"Erreur inattendue: {e}", "error")

output_topic = f"vision/analysis/{topic}"
additional_data = {
    'algorithme': 'opencv_contours',
    'version': '4.5.0'
}
