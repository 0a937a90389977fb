# /// script
# dependencies = ["scikit-image"]
#
# [tool.will-it-run]
# does = "counts the round spots of a picture"
# expects = true
# ///
import numpy as np
from skimage import filters, measure, morphology
from skimage.draw import disk

picture = np.zeros((100, 100))
for centre in ((20, 20), (50, 60), (80, 30)):
    picture[disk(centre, 9)] = 1.0
blurred = filters.gaussian(picture, 1)
mask = blurred > filters.threshold_otsu(blurred)
result = measure.label(morphology.closing(mask)).max() == 3
