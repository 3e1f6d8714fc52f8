"""The study's findings as one page to look into: no server, no request, every number inside.

The folder holds its parts: the frame (``page.html``), its looks and what it does (JavaScript).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from markdown_it import MarkdownIt

from laq.dataset.registry import DATASETS
from laq.divergence import FOLDER as DIVERGENCE
from laq.files import need, replacing_file
from laq.report.page.columns import columns_of
from laq.report.page.data import Floats, page_data
from laq.report.rendering import templates
from laq.subsets import Subset, read_subsets

_SCRIPTS: Final = ("state.js", "plot.js", "panel.js", "map.js", "page.js")


@dataclass(frozen=True)
class PageContents:
    """What the page shows.

    Attributes:
        title: Its heading.
        table: The study's table with drops, a row per cell.
        subsets: At least those of the table.
        matrix: Divergence (C, C) of the classes in nats.
        class_names: Their names, by number.
        tables: Tables to read and sort, by their headings. Of two columns ``x_mean`` and ``x_std`` one
            column mean ± standard deviation is made.
        text: The findings as Markdown.
        answers: Likewise the answers to the study's questions; empty if none can be asked.
    """

    title: str
    table: pd.DataFrame
    subsets: Sequence[Subset]
    matrix: Floats
    class_names: Sequence[str]
    tables: Mapping[str, pd.DataFrame]
    text: str
    answers: str


def read_contents(
    title: str, table: pd.DataFrame, tables: Mapping[str, pd.DataFrame], text: str, answers: str
) -> PageContents:
    """A page's contents, with the subsets and the divergences that the pipeline made.

    Raises:
        LaqError: one of their files is missing.
    """
    matrix, names = (np.load(need(DIVERGENCE / f"{name}.npy")) for name in ("matrix", "class_names"))
    classes = [str(name) for name in names]
    return PageContents(title, table, read_subsets(), matrix, classes, tables, text, answers)


def write_page(path: Path, contents: PageContents) -> None:
    """Write the page: one HTML file that asks for nothing else.

    Raises:
        LaqError: the table has a subset that is not among the subsets, or matrix and names do not fit.
    """
    # HTML in the texts is shown, not followed.
    prose = MarkdownIt("commonmark", {"html": False})
    sizes = " or ".join(str(size) for size in sorted(contents.table.subset_size_classes.unique()))
    first = contents.table.iloc[0]
    source = DATASETS.get(first.dataset)
    page = templates("laq.report.page", ".").get_template("page.html")
    text = page.render(
        title=contents.title,
        dataset=source.description or source.name if source else first.dataset,
        network=first.network,
        subsets=contents.table.subset.nunique(),
        sizes=sizes,
        measurements=len(contents.table),
        findings=prose.render(contents.text),
        answers=prose.render(contents.answers),
        tables={title: list(columns_of(table)) for title, table in contents.tables.items()},
        style=_part("page.css"),
        script="\n".join(_part(name) for name in _SCRIPTS),
        data=page_data(contents.table, contents.subsets, contents.matrix, contents.class_names),
    )
    with replacing_file(path) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8", newline="\n")


def _part(name: str) -> str:
    return (resources.files("laq.report.page") / name).read_text(encoding="utf-8")
