"""What the page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from laq.charts.theme import Caption
from laq.subsets.subset import Subset

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PageContents:
    """The contents of the page.

    Attributes:
        study: The heading, and the primary question's cell, which is shown first.
        table: The study's table with drops, a row per cell.
        subsets: The study's subsets; those of the table must be among them.
        matrix: Divergence (C, C) of the classes in nats.
        class_names: The names of the classes, in the order of their numbers.
        tables: Tables to read and sort, by their headings. Two columns ``x_mean`` and ``x_std`` are shown
            as one column, mean ± standard deviation.
        verdicts: For each question a verdict and its details, as Markdown; empty if there are none.
        note: What the intervals speak of, as Markdown.
        effects: What is known of each cell's losses (``plotted.effects``).
        plane: Where the classes lie in a plane (C, 5): means (x, y) and covariances (xx, xy, yy). Pages of
            former reports have None.
        examples: The address of the classes' pictures (``examples.example_pictures``); empty without them.
    """

    study: Caption
    table: pd.DataFrame
    subsets: Sequence[Subset]
    matrix: Floats
    class_names: Sequence[str]
    tables: Mapping[str, pd.DataFrame]
    verdicts: Sequence[tuple[str, str]]
    note: str
    effects: pd.DataFrame
    examples: str = ""
    plane: Floats | None = None
