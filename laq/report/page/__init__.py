"""The study as one interactive HTML page, which holds all its numbers and needs no server and no network.

This folder holds the parts of the page: its template (``page.html``), its style and its scripts.
"""

import gzip
from base64 import b64encode
from importlib import resources
from pathlib import Path
from typing import Any, Final

import altair as alt
from markdown_it import MarkdownIt

from laq.charts.class_map import class_map, least_width
from laq.charts.divergence_matrix import divergence_matrix, in_order
from laq.charts.files import as_dict, vega
from laq.charts.lost_by_divergence import lost_by_divergence
from laq.charts.lost_by_size import lost_by_size
from laq.charts.points_lost import points_lost
from laq.charts.theme import theme
from laq.dataset.registry import DATASETS
from laq.files import replacing_file
from laq.report.page.columns import columns_of
from laq.report.page.contents import PageContents
from laq.report.page.data import page_data, safe_json
from laq.report.rendering import templates

ROWS: Final = alt.NamedData("rows")  # which the scripts fill in
_SCRIPTS: Final = ("state.js", "page.js")


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
        title=contents.study.title,
        dataset=source.description or source.name if source else first.dataset,
        network=first.network,
        subsets=contents.table.subset.nunique(),
        sizes=sizes,
        measurements=len(contents.table),
        verdicts=[(prose.renderInline(told), prose.render(more)) for told, more in contents.verdicts],
        note=prose.render(contents.note),
        examples=contents.examples,
        has_map=contents.plane is not None,
        intervals=" with their intervals" if contents.effects.mean_low.notna().any() else "",
        tables={title: list(columns_of(table)) for title, table in contents.tables.items()},
        style=_part("page.css"),
        script="\n".join(_part(name) for name in _SCRIPTS),
        data=page_data(contents),
        charts=safe_json(_charts(contents)),
        vega=b64encode(gzip.compress(vega().encode(), mtime=0)).decode(),  # which browsers unpack
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
    places = {}
    if contents.plane is not None:
        drawn = class_map(contents.plane, contents.class_names)
        places = {"class_map": as_dict(drawn, themed=False), "map_width": least_width(len(order))}
    return {
        **places,
        **{name: as_dict(chart.properties(width="container"), themed=False) for name, chart in wide.items()},
        "divergence_matrix": as_dict(matrix, themed=False),
        "themes": {"light": theme(), "dark": theme(dark=True)},
    }


def _part(name: str) -> str:
    return (resources.files("laq.report.page") / name).read_text(encoding="utf-8")
