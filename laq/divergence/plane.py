"""Where the classes lie in a plane, for the map of classes."""

import numpy as np
from numpy.typing import NDArray

from laq.divergence.reduction import pca

Floats = NDArray[np.float64]


def class_plane(points: Floats, labels: NDArray[np.int64]) -> Floats:
    """For each class the mean (x, y) of its ``points`` (n, d) and their covariance (xx, xy, yy): (C, 5).

    The plane is the points' own if they have two coordinates, else that of their first principal components.
    """
    flat = points if points.shape[1] == 2 else pca(points, min(2, *points.shape))
    flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    clouds = [flat[labels == number] for number in range(int(labels.max()) + 1)]
    covariances = [np.cov(cloud, rowvar=False) for cloud in clouds]
    spread = [[c[0, 0], c[0, 1], c[1, 1]] for c in covariances]
    return np.hstack([[cloud.mean(0) for cloud in clouds], spread])
