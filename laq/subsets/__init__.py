"""Stage ``subsets``: which classes to keep, chosen by how far apart they are.

The same matrix gives the same subsets on every processor: they are chosen by sums, products and quotients
alone, which IEEE 754 defines to the last bit, in a fixed order, and of equals the class with the lower number
is taken. Powers differ by library; what they give is rounded before it decides anything.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Final, Literal

import numpy as np

from laq.errors import LaqError
from laq.files import read_given, write_json
from laq.paths import SUBSETS
from laq.sections.subsets import Band, Subsets
from laq.subsets.literals import literal
from laq.subsets.matrix import read_divergence
from laq.subsets.subset import Matrix, Subset, describe, mean_of, pairs_of

_NONE: Final = 1e-300  # what stands for a ratio of 0
Extreme = Literal["similar", "dissimilar"]
_EXTREMES: Final[dict[Extreme, Callable[[Iterable[float]], float]]] = {"similar": min, "dissimilar": max}


def run(params: Subsets) -> None:
    """Write the subsets as JSON."""
    matrix, names = read_divergence()
    write_json(SUBSETS, [asdict(subset) for subset in choose_subsets(matrix, names, params)])


def choose_subsets(matrix: Matrix, names: Sequence[str], params: Subsets) -> list[Subset]:
    """All subsets that ``params`` asks for, each kind from a random stream of its own.

    Raises:
        LaqError: a subset is larger than the classes there are, a class is unknown, or a band is out of
            reach.
    """
    if (size := max(params.sizes)) > len(names):
        raise LaqError(f"subsets.sizes: {size} classes wanted, there are {len(names)}")
    return [
        describe(matrix, names, f"{group.title}-{number}", group.kind, classes)
        for group in _groups(matrix, names, params)
        for number, classes in enumerate(group.subsets, 1)
    ]


@dataclass(frozen=True)
class _Group:
    """Subsets of one kind, by their classes; ``title`` and a number name each."""

    title: str
    kind: str
    subsets: list[list[int]]


def _groups(matrix: Matrix, names: Sequence[str], params: Subsets) -> Iterator[_Group]:
    """The subsets asked for, by kind and size.

    A group of more subsets begins with those of one of fewer: a small study is part of a large one.
    """
    streams = np.random.SeedSequence(params.seed).spawn(len(params.sizes))
    for size, stream in zip(params.sizes, streams, strict=True):
        for kind, subsets in _of_size(matrix, size, params, stream).items():
            yield _Group(params.title(kind, size), kind, subsets)
    given = [[_class_number(names, entry) for entry in entries] for entries in params.given]
    yield _Group("given", "given", given)
    if params.log is not None:
        content = read_given("subsets.log", params.log.path, params.log.sha256)
        yield _Group("log", "log", read_log(content, names))


def _of_size(
    matrix: Matrix, size: int, params: Subsets, stream: np.random.SeedSequence
) -> dict[str, list[list[int]]]:
    """The subsets of ``size`` classes by kind, each kind from a random stream of its own."""
    similar, dissimilar, random, band, even = (np.random.default_rng(s) for s in stream.spawn(5))
    draws = (random.choice(len(matrix), size, replace=False).tolist() for _ in range(params.random))
    return {
        "similar": _greedy_subsets(matrix, size, "similar", params.similar, similar),
        "dissimilar": _greedy_subsets(matrix, size, "dissimilar", params.dissimilar, dissimilar),
        "random": [sorted(classes) for classes in draws],
        "even": _even_subsets(matrix, size, params.even, even),
        "band": [c for asked in params.bands for c in in_band(matrix, size, asked, band)],
    }


def _greedy_subsets(
    matrix: Matrix, size: int, kind: Extreme, count: int, rng: np.random.Generator
) -> list[list[int]]:
    """``count`` different subsets from random starts; those that lead to a known one are passed over."""
    if count > len(matrix):
        raise LaqError(
            f"subsets.{kind}: {count} wanted, each from a class of its own, there are {len(matrix)}"
        )
    found: dict[frozenset[int], list[int]] = {}
    for start in rng.permutation(len(matrix)).tolist():
        if len(found) == count:
            break
        classes = greedy(matrix, start, size, kind)
        found.setdefault(frozenset(classes), classes)
    if len(found) < count:
        raise LaqError(f"subsets.{kind}: {count} wanted, but all starts lead to {len(found)} different ones")
    return list(found.values())


def greedy(matrix: Matrix, start: int, size: int, kind: Extreme) -> list[int]:
    """From ``start``, add the class with the smallest (largest) mean divergence to those chosen."""
    sign = 1 if kind == "similar" else -1
    chosen = [start]
    while len(chosen) < size:
        cost = sign * matrix[:, chosen].mean(1)
        cost[chosen] = np.inf
        chosen.append(int(cost.argmin()))
    return chosen


def _even_subsets(matrix: Matrix, size: int, count: int, rng: np.random.Generator) -> list[list[int]]:
    """Subsets whose mean divergences lie evenly, on a logarithmic axis, between the least and the largest.

    In the order of van der Corput's sequence: any number of first ones fills the axis evenly.
    """
    if count == 0:
        return []
    from scipy.stats import qmc  # noqa: PLC0415 (takes a second, and few studies need it)

    starts = range(len(matrix))
    low, high = (
        best(mean_of(pairs_of(matrix, greedy(matrix, start, size, kind))) for start in starts)
        for kind, best in _EXTREMES.items()
    )
    if low <= 0:
        raise LaqError(
            f"subsets.even: the most similar {size} classes have a mean divergence of {low:.3g}, and a "
            "logarithmic axis begins above 0; use divergence.estimator gaussian, or even 0"
        )
    places = qmc.Halton(1, scramble=False).random(count + 1)[1:, 0].tolist()
    targets = [float(f"{low ** (1 - place) * high**place:.6g}") for place in places]
    return [nearest_to(matrix, int(rng.integers(len(matrix))), size, target) for target in targets]


def nearest_to(matrix: Matrix, start: int, size: int, target: float) -> list[int]:
    """From ``start``, add the class that brings the mean divergence of pairs nearest to ``target``."""
    chosen, total = [start], 0.0
    while len(chosen) < size:
        sums = total + matrix[:, chosen].sum(1)
        pairs = len(chosen) * (len(chosen) + 1) / 2
        ratio = np.maximum(sums / (pairs * target), _NONE)
        far = np.maximum(ratio, 1 / ratio)
        far[chosen] = np.inf
        total = float(sums[far.argmin()])
        chosen.append(int(far.argmin()))
    return chosen


def in_band(matrix: Matrix, size: int, band: Band, rng: np.random.Generator) -> list[list[int]]:
    """``band.count`` subsets whose mean pairwise divergence lies in the band.

    From a random start, every class added has a mean divergence to those chosen that lies in the
    band; the mean over all pairs, a weighted mean of these, then lies there too.

    Raises:
        LaqError: fewer starts than wanted lead to a subset of ``size``.
    """
    starts = rng.permutation(len(matrix))
    grown = (_grow_in_band(matrix, int(start), size, band, rng) for start in starts)
    found = [chosen for chosen in grown if len(chosen) == size][: band.count]
    if len(found) < band.count:
        raise LaqError(
            f"subsets.bands: {band.count} subsets of {size} classes with a mean divergence in "
            f"[{band.minimum}, {band.maximum}] wanted, found {len(found)}; widen the band"
        )
    return found


def _grow_in_band(matrix: Matrix, start: int, size: int, band: Band, rng: np.random.Generator) -> list[int]:
    chosen = [start]
    while len(chosen) < size:
        means = matrix[:, chosen].mean(1)
        fits = (means >= band.minimum) & (means <= band.maximum)
        fits[chosen] = False
        if not fits.any():
            break
        chosen.append(int(rng.choice(fits.nonzero()[0])))
    return chosen


def read_log(content: bytes, names: Sequence[str]) -> list[list[int]]:
    """The different subsets in one of the predecessor's CSV logs (column ``Subset_Classes``).

    Raises:
        LaqError: it holds no such column or no rows, or a class is unknown.
    """
    try:
        rows = csv.DictReader(StringIO(content.decode(), newline=""))
        lists = [tuple(literal(row["Subset_Classes"])) for row in rows]
        different = {frozenset(classes): classes for classes in reversed(lists)}
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise LaqError(f"subsets.log: the file has no readable column Subset_Classes ({error})") from error
    if not different:
        raise LaqError("subsets.log: the file has no rows; give a log with a row for each subset")
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
