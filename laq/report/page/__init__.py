"""The study as one interactive HTML page, which holds all its numbers and needs no server and no network.

This folder holds the parts of the page: its template (``page.html``), its style and its scripts.
"""

import gzip
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import altair as alt
import pandas as pd
from markdown_it import MarkdownIt

from laq.charts.divergence_matrix import divergence_matrix, in_order
from laq.charts.files import as_dict, vega
from laq.charts.lost_by_divergence import lost_by_divergence
from laq.charts.lost_by_size import lost_by_size
from laq.charts.points_lost import points_lost
from laq.charts.theme import theme
from laq.dataset.registry import DATASETS
from laq.files import replacing_file
from laq.report.page.columns import columns_of
from laq.report.page.data import Floats, page_data, safe_json
from laq.report.rendering import templates
from laq.subsets.subset import Subset

ROWS: Final = alt.NamedData("rows")  # which the scripts fill in
_SCRIPTS: Final = ("state.js", "page.js")


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
        verdicts: For each question a verdict and its details, as Markdown; empty if there are none.
        note: What the intervals speak of, as Markdown.
        effects: What is known of each cell's losses (``plotted.effects``).
    """

    title: str
    table: pd.DataFrame
    subsets: Sequence[Subset]
    matrix: Floats
    class_names: Sequence[str]
    tables: Mapping[str, pd.DataFrame]
    verdicts: Sequence[tuple[str, str]]
    note: str
    effects: pd.DataFrame


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
        verdicts=[(prose.renderInline(told), prose.render(more)) for told, more in contents.verdicts],
        note=prose.render(contents.note),
        intervals=" with their intervals" if contents.effects.mean_low.notna().any() else "",
        tables={title: list(columns_of(table)) for title, table in contents.tables.items()},
        style=_part("page.css"),
        script="\n".join(_part(name) for name in _SCRIPTS),
        data=page_data(
            contents.table, contents.effects, contents.subsets, contents.matrix, contents.class_names
        ),
        charts=safe_json(_charts(contents)),
        vega=_packed(vega()),
    )
    with replacing_file(path) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8", newline="\n")


def _charts(contents: PageContents) -> dict[str, Any]:
    """The specifications, whose rows the page fills in, and the themes."""
    methods, order = set(contents.table.method), in_order(contents.matrix)
    wide = {
        "points_lost": points_lost(ROWS, methods),
        "lost_by_divergence": lost_by_divergence(ROWS),
        "lost_by_size": lost_by_size(ROWS, methods),
    }
    matrix = divergence_matrix(ROWS, [contents.class_names[number] for number in order])
    return {
        **{name: as_dict(chart.properties(width="container"), themed=False) for name, chart in wide.items()},
        "divergence_matrix": as_dict(matrix, themed=False),
        "themes": {"light": theme(), "dark": theme(dark=True)},
    }


def _packed(text: str) -> str:
    """The text as browsers unpack it: compressed, and that in base 64."""
    return b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _part(name: str) -> str:
    return (resources.files("laq.report.page") / name).read_text(encoding="utf-8")
