"""Stage ``subsets``: which classes to keep, chosen by how far apart they are."""

import ast
import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from laq.divergence import FOLDER as DIVERGENCE
from laq.errors import LaqError
from laq.files import need, project_root, read_json, write_json
from laq.params import Band, Subsets

FILE = Path("data/subsets.json")
Matrix = NDArray[np.float64]
Kind = Literal["similar", "dissimilar"]


@dataclass(frozen=True)
class Subset:
    """Classes to keep, and the largest, smallest, mean and median divergence (nats) of their pairs."""

    name: str
    kind: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    max_divergence: float
    min_divergence: float
    mean_divergence: float
    median_divergence: float


def run(params: Subsets) -> None:
    """Write the subsets as JSON."""
    matrix = np.load(need(DIVERGENCE / "matrix.npy"))
    names = [str(name) for name in np.load(need(DIVERGENCE / "class_names.npy"))]
    write_json(FILE, [asdict(subset) for subset in choose_subsets(matrix, names, params)])


def read_subsets(path: Path = FILE) -> list[Subset]:
    """The subsets that the stage wrote."""
    return [
        Subset(**{**fields, "classes": tuple(fields["classes"]), "class_names": tuple(fields["class_names"])})
        for fields in read_json(path)
    ]


def choose_subsets(matrix: Matrix, names: Sequence[str], params: Subsets) -> list[Subset]:
    """All subsets that ``params`` asks for, each kind from a random stream of its own.

    Raises:
        LaqError: a subset is larger than the classes there are, a class is unknown, a band is out of
            reach, or none is asked for.
    """
    if params.size > len(names):
        raise LaqError(f"subsets.size: {params.size} classes wanted, there are {len(names)}")
    chosen = [
        describe(matrix, names, f"{kind}-{number}", classes)
        for kind, group in _groups(matrix, names, params)
        for number, classes in enumerate(group, 1)
    ]
    if not chosen:
        raise LaqError("subsets: none asked for; give a count of similar, dissimilar or random above 0")
    return chosen


def _groups(matrix: Matrix, names: Sequence[str], params: Subsets) -> Iterator[tuple[str, list[list[int]]]]:
    """The kinds of subsets, each with the classes of all its subsets."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(params.seed).spawn(4)]
    kinds: tuple[tuple[Kind, int], ...] = (("similar", params.similar), ("dissimilar", params.dissimilar))
    for (kind, count), rng in zip(kinds, streams, strict=False):
        yield kind, _greedy_subsets(matrix, params.size, kind, count, rng)
    sizes = (len(names), params.size)
    yield "random", [sorted(streams[2].choice(*sizes, replace=False).tolist()) for _ in range(params.random)]
    yield "band", [c for band in params.bands for c in in_band(matrix, params.size, band, streams[3])]
    yield "given", [[_class_number(names, entry) for entry in entries] for entries in params.given]
    yield "log", [] if params.log is None else read_log(project_root() / params.log, names)


def _greedy_subsets(
    matrix: Matrix, size: int, kind: Kind, count: int, rng: np.random.Generator
) -> list[list[int]]:
    """``count`` different subsets from random starts; those that lead to a known one are passed over."""
    if count > len(matrix):
        raise LaqError(
            f"subsets.{kind}: {count} wanted, each from a class of its own, there are {len(matrix)}"
        )
    first = rng.choice(len(matrix), count, replace=False).tolist()
    others = [start for start in rng.permutation(len(matrix)).tolist() if start not in first]
    found: dict[frozenset[int], list[int]] = {}
    for start in first + others:
        if len(found) == count:
            break
        classes = greedy(matrix, start, size, kind)
        found.setdefault(frozenset(classes), classes)
    if len(found) < count:
        raise LaqError(f"subsets.{kind}: {count} wanted, but all starts lead to {len(found)} different ones")
    return list(found.values())


def greedy(matrix: Matrix, start: int, size: int, kind: Kind) -> list[int]:
    """From ``start``, add the class with the smallest (largest) mean divergence to those chosen."""
    sign = 1 if kind == "similar" else -1
    chosen = [start]
    while len(chosen) < size:
        cost = sign * matrix[:, chosen].mean(1)
        cost[chosen] = np.inf
        chosen.append(int(cost.argmin()))
    return chosen


def in_band(matrix: Matrix, size: int, band: Band, rng: np.random.Generator) -> list[list[int]]:
    """``band.count`` subsets whose mean pairwise divergence lies in the band.

    From a random start, every class added has a mean divergence to those chosen that lies in the
    band; the mean over all pairs, a weighted mean of these, then lies there too.

    Raises:
        LaqError: fewer starts than wanted lead to a subset of ``size``.
    """
    walks = (_band_walk(matrix, int(s), size, band, rng) for s in rng.permutation(len(matrix)))
    found = [chosen for chosen in walks if len(chosen) == size][: band.count]
    if len(found) < band.count:
        raise LaqError(
            f"subsets.bands: {band.count} subsets of {size} classes with a mean divergence in "
            f"[{band.minimum}, {band.maximum}] wanted, found {len(found)}; widen the band"
        )
    return found


def _band_walk(matrix: Matrix, start: int, size: int, band: Band, rng: np.random.Generator) -> list[int]:
    chosen = [start]
    while len(chosen) < size:
        means = matrix[:, chosen].mean(1)
        fits = (means >= band.minimum) & (means <= band.maximum)
        fits[chosen] = False
        if not fits.any():
            break
        chosen.append(int(rng.choice(fits.nonzero()[0])))
    return chosen


def describe(matrix: Matrix, names: Sequence[str], name: str, classes: Sequence[int]) -> Subset:
    """The subset ``classes`` with the statistics of its pairs' divergences.

    Raises:
        LaqError: a class is named twice, or there is but one.
    """
    if len(set(classes)) < max(len(classes), 2):
        raise LaqError(f"subset {name}: needs two or more different classes, found {list(classes)}")
    pairs = matrix[np.ix_(classes, classes)][np.triu_indices(len(classes), 1)]
    return Subset(
        name=name,
        kind=name.rpartition("-")[0],
        classes=tuple(classes),
        class_names=tuple(names[c] for c in classes),
        max_divergence=float(pairs.max()),
        min_divergence=float(pairs.min()),
        mean_divergence=float(pairs.mean()),
        median_divergence=float(np.median(pairs)),
    )


def read_log(path: Path, names: Sequence[str]) -> list[list[int]]:
    """The different subsets in one of the predecessor's CSV logs (column ``Subset_Classes``).

    Raises:
        LaqError: the file is missing or holds no such column, or a class is unknown.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lists = [tuple(ast.literal_eval(row["Subset_Classes"])) for row in csv.DictReader(file)]
        different = {frozenset(classes): classes for classes in reversed(lists)}
    except FileNotFoundError as error:
        raise LaqError(f"subsets.log: no file {path}") from error
    except (KeyError, ValueError, SyntaxError, TypeError, csv.Error) as error:
        raise LaqError(f"subsets.log: {path} has no readable column Subset_Classes ({error})") from error
    return [[_class_number(names, c) for c in classes] for classes in reversed(different.values())]


def _class_number(names: Sequence[str], entry: str | int) -> int:
    """A class by its name or number."""
    if isinstance(entry, int) and 0 <= entry < len(names):
        return entry
    if isinstance(entry, str) and entry in names:
        return names.index(entry)
    raise LaqError(
        f"subsets: unknown class {entry!r}; classes are 0 to {len(names) - 1} or names such as "
        f"{', '.join(names[:3])} (all of them: data/divergence/class_names.npy)"
    )
