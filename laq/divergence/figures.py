"""Two figures of the classes: the heat map of their divergences, and each one's points in the plane."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

Floats = NDArray[np.float64]
_DPI = 110
_WIDTH, _HEIGHT = 15.0, 14.5  # inches, of the heat map
_SCALE = "symmetrised KL divergence (nats)"
_PANEL = (1.08, 1.2)  # a class's panel, its points being within 1 × 1
_LONGEST = 40  # characters


def clustered(matrix: Floats) -> Floats:
    """The average-linkage clustering of the classes by their divergences (C, C), as SciPy gives it."""
    distances = squareform(np.log1p(np.maximum(matrix, 0)), checks=False)
    return np.asarray(linkage(distances, "average", optimal_ordering=True))


def draw_heat_map(path: Path, matrix: Floats, names: Sequence[str]) -> None:
    """The divergence matrix (C, C), its classes in the order of an average-linkage clustering."""
    tree = clustered(matrix)
    order = leaves_list(tree).tolist()
    labels = [_shortened(names[i]) for i in order]
    size = min(10.0, 700 / len(labels))
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    left, right, top = _heat_map_axes(figure, max(map(len, labels)) * size)
    dendrogram(
        tree, orientation="left", ax=left, no_labels=True, color_threshold=0, above_threshold_color="0.4"
    )
    left.invert_yaxis()
    left.set_axis_off()
    shown = np.maximum(matrix[np.ix_(order, order)], 1e-12)
    apart = shown[~np.eye(len(order), dtype=np.bool_)]
    image = right.imshow(
        shown, cmap="magma", norm=LogNorm(max(np.quantile(apart, 0.001), 1e-3), apart.max()), aspect="auto"
    )
    right.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size, parse_math=False)
    right.set_yticks(range(len(labels)), labels, fontsize=size, parse_math=False)
    right.yaxis.tick_right()
    figure.colorbar(image, cax=top, orientation="horizontal", ticklocation="top", label=_SCALE)
    figure.savefig(path, dpi=_DPI)


def _heat_map_axes(figure: Figure, longest: float) -> tuple[Axes, Axes, Axes]:
    """The axes of the tree, of the matrix and of the scale, with room for labels of ``longest`` points.

    Laying them out automatically draws everything three times.
    """
    room = 0.2 + 0.6 * longest / 72  # inches; a character is some 0.6 times as wide as it is high
    x, y, width, height = 1.5 / _WIDTH, room / _HEIGHT, 1 - (1.5 + room) / _WIDTH, 1 - (1.0 + room) / _HEIGHT
    return (
        figure.add_axes((0.1 / _WIDTH, y, 1.35 / _WIDTH, height)),
        figure.add_axes((x, y, width, height)),
        figure.add_axes((x + width / 4, y + height + 0.15 / _HEIGHT, width / 2, 0.25 / _HEIGHT)),
    )


def draw_classes(path: Path, points: Floats, labels: NDArray[np.int64], names: Sequence[str]) -> None:
    """A grid with each class's points (n, 2) before all others, and its ellipse of 2 deviations."""
    clouds = [points[labels == number] for number in range(len(names))]
    ellipses = [_ellipse(cloud) for cloud in clouds]
    whole = np.concatenate([points, *ellipses])
    low, extent = whole.min(0), np.where(np.ptp(whole, axis=0) > 0, np.ptp(whole, axis=0), 1.0)
    columns = int(np.ceil(np.sqrt(len(names))))
    # All panels lie in one pair of axes: a hundred pairs take ten times as long to draw.
    corners = [np.array([at % columns, -(at // columns)]) * _PANEL for at in range(len(names))]
    every = points[:: max(1, len(points) // 2000)]

    def placed(parts: Sequence[Floats]) -> list[Floats]:
        return [(part - low) / extent + corner for part, corner in zip(parts, corners, strict=True)]

    rows = int(np.ceil(len(names) / columns))
    figure = Figure(figsize=(1.5 * columns, 1.6 * rows))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_axis_off()
    axes.set(xlim=(-0.05, columns * _PANEL[0]), ylim=(-(rows - 1) * _PANEL[1] - 0.05, _PANEL[1]))
    for parts, size, colour in (([every] * len(names), 2, "0.8"), (clouds, 5, "tab:blue")):
        x, y = np.concatenate(placed(parts)).T
        axes.scatter(x, y, s=size, c=colour, linewidths=0)
    axes.add_collection(LineCollection(placed(ellipses), colors="tab:red", linewidths=1), autolim=False)
    for name, (x, y) in zip(names, corners, strict=True):
        axes.text(x + 0.5, y + 1.04, _shortened(name), fontsize=8, ha="center", parse_math=False)
    figure.savefig(path, dpi=_DPI)


def _shortened(name: str) -> str:
    """A class's name, of which a folder's may have hundreds of characters."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _ellipse(cloud: Floats) -> Floats:
    """The outline (m, 2) of where a Gaussian fitted to ``cloud`` (n, 2) is within 2 standard deviations."""
    variances, axes = np.linalg.eigh(np.cov(cloud, rowvar=False))
    angles = np.linspace(0, 2 * np.pi, 61)
    circle = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(cloud.mean(0) + (circle * np.sqrt(np.maximum(variances, 0))) @ axes.T)
