# /// script
# dependencies = ["tslearn", "h5py"]
#
# [tool.will-it-run]
# does = "clusters time series by dynamic time warping"
# expects = true
# ///
import numpy as np
from tslearn.clustering import TimeSeriesKMeans

t = np.linspace(0, 6, 40)
series = np.array([np.sin(t), np.sin(t + 0.2), t / 3, t / 3 + 0.1])[:, :, None]
labels = TimeSeriesKMeans(2, metric="dtw", random_state=0, n_init=2).fit_predict(series)
result = bool(labels[0] == labels[1] and labels[2] == labels[3] and labels[0] != labels[2])
