"""From features to a few coordinates."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from laq.errors import LaqError
from laq.progress import bar_options
from laq.sections.divergence import Divergence

_LARGE: Final = 2**28  # bytes


def reduce(features: NDArray[np.float64], params: Divergence) -> NDArray[np.float64]:
    """Features (n, f) → points (n, components), or (n, f) when nothing is reduced.

    Raises:
        LaqError: more components are asked for than there are.
    """
    if params.reduction == "none":
        return features
    if params.reduction == "pca":
        if params.components > (most := min(features.shape)):
            raise LaqError(
                f"divergence.components: found {params.components}; must be at most {most}, of "
                f"{len(features)} images with {features.shape[1]} features"
            )
        return pca(features, params.components)
    import umap  # noqa: PLC0415 (importing it compiles for seconds, and only this branch needs it)

    # One job: with more, UMAP's result would depend on how threads interleave.
    reducer = umap.UMAP(
        n_components=params.components,
        n_neighbors=params.umap_neighbours,
        random_state=params.seed,
        n_jobs=1,
        tqdm_kwds={**bar_options("umap"), "disable": False},
    )
    return np.asarray(reducer.fit_transform(features), dtype=np.float64)


def pca(features: NDArray[np.float64], components: int) -> NDArray[np.float64]:
    """The first principal components (n, components)."""
    from sklearn.decomposition import PCA  # noqa: PLC0415 (takes a second, and most commands need none)

    # Of many features the eigenvectors of their covariance: decomposing all takes three times their memory.
    large = features.nbytes > _LARGE
    solver = "covariance_eigh" if large else "full"
    fitted = PCA(components, svd_solver=solver, copy=not large)
    return np.asarray(fitted.fit_transform(features))
