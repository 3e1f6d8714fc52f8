"""Two figures of the classes: the heat map of their divergences, and each one's points in the plane."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

Floats = NDArray[np.float64]
_DPI = 110
_LONGEST = 40  # characters


def clustered(matrix: Floats) -> Floats:
    """The average-linkage clustering of the classes by their divergences (C, C), as SciPy gives it."""
    distances = squareform(np.log1p(np.maximum(matrix, 0)), checks=False)
    return np.asarray(linkage(distances, "average", optimal_ordering=True))


def draw_heat_map(path: Path, matrix: Floats, names: Sequence[str]) -> None:
    """The divergence matrix (C, C), its classes in the order of an average-linkage clustering."""
    tree = clustered(matrix)
    figure = Figure(figsize=(15, 14.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 9))
    dendrogram(
        tree, orientation="left", ax=left, no_labels=True, color_threshold=0, above_threshold_color="0.4"
    )
    order = leaves_list(tree).tolist()
    left.invert_yaxis()
    left.set_axis_off()
    shown = np.maximum(matrix[np.ix_(order, order)], 1e-12)
    apart = shown[~np.eye(len(order), dtype=np.bool_)]
    image = right.imshow(
        shown, cmap="magma", norm=LogNorm(max(np.quantile(apart, 0.001), 1e-3), apart.max()), aspect="auto"
    )
    labels = [_shortened(names[i]) for i in order]
    size = min(10.0, 700 / len(labels))
    right.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size, parse_math=False)
    right.set_yticks(range(len(labels)), labels, fontsize=size, parse_math=False)
    right.yaxis.tick_right()
    figure.colorbar(image, ax=right, location="top", shrink=0.5, label="symmetrised KL divergence (nats)")
    figure.savefig(path, dpi=_DPI)


def draw_classes(path: Path, points: Floats, labels: NDArray[np.int64], names: Sequence[str]) -> None:
    """A grid with each class's points (n, 2) before all others, and its ellipse of 2 deviations."""
    columns = int(np.ceil(np.sqrt(len(names))))
    rows = int(np.ceil(len(names) / columns))
    figure = Figure(figsize=(1.5 * columns, 1.6 * rows))
    # By hand: laying out a hundred panels automatically takes ten seconds.
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.97, wspace=0.05, hspace=0.2)
    grid = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    every = points[:: max(1, len(points) // 2000)]
    for axes in grid:
        axes.set_axis_off()
    # Shared by all panels; ellipses may reach beyond.
    grid[0].set(xlim=_range(points[:, 0]), ylim=_range(points[:, 1]))
    for axes, (number, name) in zip(grid, enumerate(names), strict=False):
        own = points[labels == number]
        axes.scatter(*every.T, s=2, c="0.8", linewidths=0, rasterized=True)
        axes.scatter(*own.T, s=5, c="tab:blue", linewidths=0, rasterized=True)
        axes.add_patch(_ellipse(own))
        axes.set_title(_shortened(name), fontsize=8, pad=1, parse_math=False)
    figure.savefig(path, dpi=_DPI)


def _shortened(name: str) -> str:
    """A class's name, of which a folder's may have hundreds of characters."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _range(values: Floats) -> tuple[float, float]:
    margin = 0.03 * float(np.ptp(values)) or 1.0
    return float(values.min()) - margin, float(values.max()) + margin


def _ellipse(cloud: Floats) -> Ellipse:
    """Where a Gaussian fitted to ``cloud`` (n, 2) is within 2 standard deviations."""
    variances, axes = np.linalg.eigh(np.cov(cloud, rowvar=False))
    width, height = 4 * np.sqrt(np.maximum(variances, 0))
    angle = float(np.degrees(np.arctan2(axes[1, 0], axes[0, 0])))
    centre = (float(cloud[:, 0].mean()), float(cloud[:, 1].mean()))
    return Ellipse(centre, width, height, angle=angle, fill=False, edgecolor="tab:red", linewidth=1)
