"""Stage ``divergence``: how far apart every two classes are."""

from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray

from laq.divergence.estimators import gaussian_divergence, knn_divergence, symmetrised
from laq.divergence.files import ALTERNATIVES, MADE, MATRIX, PLANE
from laq.divergence.plane import class_plane
from laq.divergence.reduction import reduce
from laq.errors import LaqError
from laq.files import read_array, read_given, replacing_folder, write_json
from laq.paths import DIVERGENCE as FOLDER
from laq.paths import EMBEDDINGS
from laq.sections.base import Given
from laq.sections.divergence import Divergence

DIGITS: Final = 4  # significant ones


def run(params: Divergence) -> None:
    """Write ``matrix.npy`` float64 (C, C), ``class_names.npy`` (C,), ``plane.npy`` and how it was made.

    And a matrix ``alternatives/<name>.npy`` for each other way that is asked for. The study's own is rounded
    to ``DIGITS`` significant digits, more than a class's images tell, so that subsets are the same on every
    processor.
    """
    features, labels, names = read_embeddings()
    given = {name: read_matrix(theirs, name, len(names)) for name, theirs in params.given.items()}
    points = reduce(features, params)
    matrix, method = class_divergence(points, labels, params)
    with replacing_folder(FOLDER) as folder:
        np.save(folder / MATRIX, rounded(matrix))
        np.save(folder / "class_names.npy", np.array(names))
        made = {"name": params.name, "estimator": method, "dimensions": points.shape[1]}
        write_json(folder / MADE, made)
        (folder / ALTERNATIVES).mkdir()
        for name, other in (given | alternatives(features, labels, points, params)).items():
            np.save(folder / ALTERNATIVES / f"{name}.npy", other)
        np.save(folder / PLANE, rounded(class_plane(points, labels)))


def read_embeddings() -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """The features (n, f) and classes (n,) of all training images, and the names of the C classes.

    Raises:
        LaqError: a file is missing or damaged.
    """
    features = read_array(EMBEDDINGS / "features.npy", float, (None, None))
    labels = read_array(path := EMBEDDINGS / "labels.npy", int, (len(features),))
    names = [str(name) for name in read_array(EMBEDDINGS / "class_names.npy", str, (None,))]
    if labels.min() < 0 or labels.max() >= len(names):
        found, most = f"{labels.min()} to {labels.max()}", len(names) - 1
        raise LaqError(f"{path}: found classes {found}; must be from 0 to {most}; run `dvc repro`")
    return features, labels, names


def rounded(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix with ``DIGITS`` significant digits, each number the float nearest to its decimal."""
    return np.array([[float(f"{value:.{DIGITS}g}") for value in row] for row in matrix])


def alternatives(
    features: NDArray[np.float64], labels: NDArray[np.int64], points: NDArray[np.float64], params: Divergence
) -> dict[str, NDArray[np.float64]]:
    """The divergence (C, C) of the classes in each of ``params.others``.

    ``points`` are those of the study's own reduction, which is not done twice.
    """
    found: dict[str, NDArray[np.float64]] = {}
    reduced: dict[str, NDArray[np.float64]] = {params.reduction: points}
    for name in params.others:
        reduction, _, estimator = name.replace("features", "none").partition("-")
        way = params.model_copy(update={"reduction": reduction, "estimator": estimator})
        if way.reduction not in reduced:
            reduced[way.reduction] = reduce(features, way)
        found[name], _ = class_divergence(reduced[way.reduction], labels, way)
    return found


def read_matrix(given: Given, name: str, classes: int) -> NDArray[np.float64]:
    """A matrix (C, C) from elsewhere, its classes in the order of ``class_names.npy``.

    Raises:
        LaqError: there is no such file, it is another one, or it is no symmetric matrix of ``classes``
            finite numbers.
    """
    where = f"divergence.given.{name}: {given.path}"
    content = read_given(f"divergence.given.{name}", given.path, given.sha256)
    try:
        matrix = np.asarray(np.load(BytesIO(content), allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise LaqError(f"{where}: not a .npy file of numbers ({error})") from error
    if matrix.shape != (classes, classes):
        raise LaqError(
            f"{where}: has the shape {matrix.shape}; must be ({classes}, {classes}), for all classes"
        )
    if not np.isfinite(matrix).all():
        raise LaqError(f"{where}: holds numbers that are not finite; all must be")
    if not np.allclose(matrix, matrix.T):
        raise LaqError(f"{where}: is not symmetric; give the mean of both directions")
    return matrix


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
