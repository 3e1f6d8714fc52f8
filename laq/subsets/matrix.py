"""The matrix of divergences, as the stage ``divergence`` writes it and later ones read it.

It is read here, as whatever the package ``divergence`` imports would belong to the stage ``subsets``, too.
"""

from pathlib import Path

from laq.files import read_array
from laq.paths import CLASS_NAMES, DIVERGENCE
from laq.subsets.subset import Matrix


def read_divergence(folder: Path = DIVERGENCE) -> tuple[Matrix, list[str]]:
    """The study's own matrix (C, C) in nats, and the names of its C classes.

    Raises:
        LaqError: a file is missing or damaged.
    """
    names = read_array(folder / CLASS_NAMES.name, str, (None,))
    return read_array(folder / "matrix.npy", float, (len(names), len(names))), [str(name) for name in names]
