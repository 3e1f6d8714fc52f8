"""Stage ``divergence``: how far apart every two classes are."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laq.divergence.estimators import gaussian_divergence, knn_divergence, symmetrised
from laq.divergence.pictures import draw_classes, draw_heat_map
from laq.divergence.reduction import pca, reduce
from laq.embeddings import FOLDER as EMBEDDINGS
from laq.errors import LaqError
from laq.files import need, replacing_folder, write_json
from laq.params import Divergence

FOLDER = Path("data/divergence")


def run(params: Divergence) -> None:
    """Write ``matrix.npy`` float64 (C, C), ``class_names.npy`` (C,), two pictures and how it was made."""
    features, labels = (np.load(need(EMBEDDINGS / f"{n}.npy")) for n in ("features", "labels"))
    names = np.load(need(EMBEDDINGS / "class_names.npy"))
    points = reduce(features, params)
    matrix, method = class_divergence(points, labels, params)
    with replacing_folder(FOLDER) as folder:
        np.save(folder / "matrix.npy", matrix)
        np.save(folder / "class_names.npy", names)
        write_json(folder / "divergence.json", {"estimator": method, "dimensions": points.shape[1]})
        draw_heat_map(folder / "heat_map.png", matrix, names)
        draw_classes(folder / "classes.png", _plane(points), labels, names)


def class_divergence(
    points: NDArray[np.float64], labels: NDArray[np.int64], params: Divergence
) -> tuple[NDArray[np.float64], str]:
    """The symmetrised divergence (C, C) of the classes of ``points`` (n, d), and the estimator's name."""
    clouds = [points[labels == c] for c in range(int(labels.max()) + 1)]
    if min(len(cloud) for cloud in clouds) < 2:
        raise LaqError("divergence: every class needs at least 2 training images")
    try:
        if params.estimator == "knn":
            return symmetrised(knn_divergence(clouds, params.knn_neighbours)), "knn"
        matrix, covariance = gaussian_divergence(clouds)
    except ValueError as error:
        raise LaqError(f"divergence: {error}") from error
    return symmetrised(matrix), f"gaussian, {covariance} covariance"


def _plane(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two coordinates to draw: the points' own, or their first principal components."""
    if points.shape[1] == 2:
        return points
    flat = pca(points.astype(np.float32), 2)
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
