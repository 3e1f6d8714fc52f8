"""The study as one interactive HTML page, which holds all its numbers and needs no server and no network.

This folder holds the parts of the page: its template (``page.html``), its style and its scripts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import pandas as pd
from markdown_it import MarkdownIt

from laq.dataset.registry import DATASETS
from laq.files import replacing_file
from laq.report.page.columns import columns_of
from laq.report.page.data import Floats, page_data
from laq.report.rendering import templates
from laq.subsets.subset import Subset

_SCRIPTS: Final = ("state.js", "plot.js", "panel.js", "map.js", "page.js")


@dataclass(frozen=True)
class PageContents:
    """The contents of the page.

    Attributes:
        title: The heading.
        table: The study's table with drops, a row per cell.
        subsets: The study's subsets; those of the table must be among them.
        matrix: Divergence (C, C) of the classes in nats.
        class_names: The names of the classes, in the order of their numbers.
        tables: Tables to read and sort, by their headings. Two columns ``x_mean`` and ``x_std`` are shown
            as one column, mean ± standard deviation.
        text: The findings as Markdown.
        answers: The answers to the study's questions as Markdown; empty if there are none.
    """

    title: str
    table: pd.DataFrame
    subsets: Sequence[Subset]
    matrix: Floats
    class_names: Sequence[str]
    tables: Mapping[str, pd.DataFrame]
    text: str
    answers: str


def write_page(path: Path, contents: PageContents) -> None:
    """Write the page as one HTML file that loads no other.

    Raises:
        LaqError: the table has a subset that is not among the subsets, or the matrix does not fit the names.
    """
    # HTML in the texts is escaped.
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
