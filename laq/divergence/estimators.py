"""The Kullback-Leibler divergence between classes, each given as a cloud of points."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Covariance = Literal["empirical", "ledoit-wolf"]
_SINGULAR = 1e10  # the condition number above which a covariance is not inverted
_RIDGE = 1e-6  # of the classes' mean variance: what identical points are taken to vary by


def gaussian_divergence(clouds: Sequence[Floats]) -> tuple[Floats, Covariance]:
    """KL(P‖Q) (C, C) of the Gaussians fitted to C clouds (n_c, d), in nats.

    Closed form: ½ [tr(Σ_Q⁻¹ Σ_P) + (μ_Q - μ_P)ᵀ Σ_Q⁻¹ (μ_Q - μ_P) - d + ln(|Σ_Q| / |Σ_P|)].

    If any class's covariance is singular, all classes get Ledoit and Wolf's (2004) shrunk one, so
    that they stay comparable; which it was is returned too.
    """
    means = np.stack([cloud.mean(0) for cloud in clouds])
    covariances = np.stack([np.atleast_2d(np.cov(cloud, rowvar=False)) for cloud in clouds])
    kind: Covariance = "empirical"
    if not np.isfinite(covariances).all() or np.linalg.cond(covariances).max() > _SINGULAR:
        covariances, kind = _shrunk(clouds), "ledoit-wolf"
    return _closed_form(means, covariances), kind


def _shrunk(clouds: Sequence[Floats]) -> Floats:
    from sklearn.covariance import LedoitWolf  # noqa: PLC0415 (takes a second, and few studies need it)

    shrunk = np.stack([LedoitWolf().fit(cloud).covariance_ for cloud in clouds])
    dimensions = shrunk.shape[-1]
    ridge = _RIDGE * max(float(np.trace(shrunk.mean(0))) / dimensions, np.finfo(np.float64).tiny ** 0.25)
    return np.asarray(shrunk + ridge * np.eye(dimensions))


def _closed_form(means: Floats, covariances: Floats) -> Floats:
    classes, dimensions = means.shape
    inverses = np.linalg.inv(covariances)
    log_volumes = np.linalg.slogdet(covariances)[1]
    traces = covariances.reshape(classes, -1) @ inverses.reshape(classes, -1).T
    distances = np.empty((classes, classes))
    for q in range(classes):
        apart = means - means[q]
        distances[:, q] = ((apart @ inverses[q]) * apart).sum(1)
    volumes = log_volumes[None, :] - log_volumes[:, None]
    return np.asarray(0.5 * (traces + distances - dimensions + volumes))


def knn_divergence(clouds: Sequence[Floats], k: int) -> Floats:
    """KL(P‖Q) (C, C) of C clouds (n_c, d) from k-th neighbours' distances, in nats.

    Pérez-Cruz (2008), equation 14: d/n Σ_i ln(s_k(x_i) / r_k(x_i)) + ln(m / (n - 1)), where r_k is the
    distance from x_i to its k-th neighbour among P's other points and s_k to the k-th among Q's.

    Raises:
        ValueError: a class has no more than ``k`` points, or as many identical ones.
    """
    sizes = np.array([len(cloud) for cloud in clouds])
    if sizes.min() <= k:
        raise ValueError(f"{k} neighbours need more than {k} points a class, the fewest are {sizes.min()}")
    points, owner = np.concatenate(clouds), np.repeat(np.arange(len(clouds)), sizes)
    result = np.empty((len(clouds), len(clouds)))
    own = np.concatenate([np.log(_kth(c, c, k + 1)) for c in clouds])
    for q, cloud in enumerate(clouds):
        ratio = np.log(_kth(cloud, points, k)) - own
        sums = np.bincount(owner, ratio, len(clouds))
        result[:, q] = points.shape[1] * sums / sizes + np.log(sizes[q] / (sizes - 1))
    return result


def _kth(cloud: Floats, points: Floats, k: int) -> Floats:
    """The distance from each of ``points`` to its k-th nearest in ``cloud``."""
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415 (takes a second, and few studies need it)

    distances, _ = NearestNeighbors(n_neighbors=k).fit(cloud).kneighbors(points)
    if not (distances[:, -1] > 0).all():
        raise ValueError(
            f"{k} or more identical points have no k-NN divergence; use more neighbours, or gaussian"
        )
    return np.asarray(distances[:, -1], dtype=np.float64)


def symmetrised(divergence: Floats) -> Floats:
    """The mean of both directions, with a diagonal of zeros."""
    mean = (divergence + divergence.T) / 2
    np.fill_diagonal(mean, 0)
    return mean
