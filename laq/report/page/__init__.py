"""The study's findings as one page to look into: no server, no request, every number inside.

``page/`` holds its parts: the frame (``page.html``), its looks and what it does. The numbers are in the
element ``#data``, as JSON::

    classes: names, by number;  order: of the classes in the map;  matrix: nats, C x C
    subsets: {name, kind, classes, divergence}, columns of equal length
    settings: [{bits, method, variant, calibration, base}], base the number of the float setting
    scores: {top1_sub_percent: [setting][subset], ...}, means over seeds; null where nothing was measured
    choices: {bits: [[value, label], ...], ...};  start: the number of the setting shown first
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list

from laq.divergence import FOLDER as DIVERGENCE
from laq.divergence.pictures import clustered
from laq.errors import LaqError
from laq.files import need, replacing_file
from laq.report.figures import in_order
from laq.report.markdown import METHOD_NAMES
from laq.report.tables import BASE_OF, DROPS
from laq.study import IMAGES_OF, NO_IMAGES
from laq.subsets import Subset, read_subsets

Floats = NDArray[np.float64]
_SCRIPTS: Final = ("state.js", "plot.js", "panel.js", "map.js", "page.js")
_SETTING: Final = ["bits", "method", "variant", "calibration"]
_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "bits": {"32": "32 (float)"},
    "method": {**METHOD_NAMES, "float": "none (float)"},
    "variant": {"finetuned": "fine-tuned"},
    "calibration": {NO_IMAGES: "no images", **IMAGES_OF},
}
_HEADS: Final = {
    "top1_sub_percent": "top-1, restricted (%)",
    "top1_all_percent": "top-1, among all (%)",
    "top5_sub_percent": "top-5, restricted (%)",
    "top5_all_percent": "top-5, among all (%)",
    "drop_sub_points": "drop, restricted (points)",
    "drop_all_points": "drop, among all (points)",
    "sparsity_percent": "sparsity (%)",
}
_ABOUT: Final = {"glyphs": "glyphs, the built-in dataset of drawn characters (no photographs)"}


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
        text: The findings: paragraphs and lists of Markdown.
        answers: Likewise what the study's questions come to; empty if none can be asked.
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
    page = Template(_part("page.html")).substitute(
        title=escape(contents.title),
        provenance=escape(_provenance(contents.table)),
        findings=_prose("Findings", contents.text),
        answers=_prose("Answers", contents.answers) if contents.answers else "",
        tables="\n".join(_section(*item) for item in contents.tables.items()),
        style=_part("page.css"),
        script="\n".join(_part(name) for name in _SCRIPTS),
        data=_embedded(_data(contents)),
    )
    with replacing_file(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")


def _part(name: str) -> str:
    return (resources.files("laq.report.page") / name).read_text(encoding="utf-8")


def _provenance(table: pd.DataFrame) -> str:
    first, sizes = table.iloc[0], sorted(table.subset_size_classes.unique())
    dataset = _ABOUT.get(first.dataset, first.dataset)
    classes = " or ".join(str(size) for size in sizes)
    return (
        f"Dataset: {dataset}. Network: {first.network}. n = {table.subset.nunique()} subsets of {classes} "
        f"classes; {len(table)} measurements."
    )


def _embedded(content: Any) -> str:
    """JSON that ends no element and begins none, whatever the names in it."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _data(contents: PageContents) -> dict[str, Any]:
    measured, classes = set(contents.table.subset), len(contents.class_names)
    unknown = measured - {subset.name for subset in contents.subsets}
    if unknown:
        raise LaqError(
            f"page: subset {min(unknown)} of the table is not among the {len(contents.subsets)} subsets"
        )
    if contents.matrix.shape != (classes, classes):
        raise LaqError(f"page: divergences {contents.matrix.shape} do not fit {classes} class names")
    subsets = [subset for subset in contents.subsets if subset.name in measured]
    return {
        "classes": list(contents.class_names),
        "order": leaves_list(clustered(contents.matrix)).tolist(),
        "matrix": [[float(f"{value:.4g}") for value in row] for row in contents.matrix],
        "subsets": {
            "name": [subset.name for subset in subsets],
            "kind": [subset.kind for subset in subsets],
            "classes": [list(subset.classes) for subset in subsets],
            "divergence": [float(f"{subset.median_divergence:.6g}") for subset in subsets],
        },
        **_measured(contents.table, [subset.name for subset in subsets]),
    }


def _measured(table: pd.DataFrame, names: list[str]) -> dict[str, Any]:
    """The settings and each one's scores, by the subsets' ``names``."""
    rows = _settings_of(table)
    values = {field: _values(rows, field) for field in _SETTING}
    found = set(rows[_SETTING].itertuples(index=False, name=None))
    settings = sorted(found, key=lambda s: [values[f].index(v) for f, v in zip(_SETTING, s, strict=True)])
    bases = {setting[2]: number for number, setting in enumerate(settings) if setting[1] == "float"}
    return {
        "settings": [
            {**dict(zip(_SETTING, setting, strict=True)), "base": bases[setting[2]]} for setting in settings
        ],
        "choices": {f: [[v, _NAMES[f].get(v, v)] for v in values[f]] for f in _SETTING},
        "start": _start(settings, rows),
        "scores": {s: _grid(rows, s, settings, names) for s in (*DROPS, *DROPS.values())},
    }


def _settings_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the page's own variant (of the network before quantization) and calibration."""
    return table.assign(
        variant=table.variant.replace(BASE_OF),
        calibration=table.calibration.where(table.method != "float", NO_IMAGES),
    )


def _values(rows: pd.DataFrame, field: str) -> list[str]:
    """What a field may be: bits from few to many, all else as the table has it."""
    if field == "bits":
        return in_order(rows)
    return list(rows[field].unique())


def _grid(rows: pd.DataFrame, score: str, settings: Sequence[Any], names: list[str]) -> list[list[Any]]:
    """Means over seeds, by setting and subset; None where nothing was measured."""
    means = rows.pivot_table(values=score, index=_SETTING, columns="subset")
    grid = means.reindex(index=pd.MultiIndex.from_tuples(settings), columns=names).to_numpy()
    return [[None if np.isnan(value) else round(float(value), 2) for value in line] for line in grid]


def _start(settings: Sequence[Any], rows: pd.DataFrame) -> int:
    """The setting shown first: the fewest bits, and what keeps most of the first network there."""
    mean = rows.groupby(_SETTING).top1_sub_percent.mean()
    quantized = [setting for setting in settings if setting[1] != "float"] or list(settings)
    first = quantized[0]
    rivals = [s for s in quantized if (s[0], s[2]) == (first[0], first[2])]
    return settings.index(max(rivals, key=lambda setting: float(mean[setting])))


def _html(text: str) -> str:
    """Paragraphs, headings and lists of Markdown; **strong**, `code` and escaped signs within."""
    return "\n".join(_block(block) for block in re.split(r"\n\s*\n", text.strip()))


def _block(block: str) -> str:
    lines = block.splitlines()
    if all(re.match(r"[-*] |  ", line) for line in lines):
        items = re.split(r"^[-*] ", block, flags=re.MULTILINE)[1:]
        return "<ul>" + "".join(f"<li>{_inline(item.strip())}</li>" for item in items) + "</ul>"
    if heading := re.fullmatch(r"#+ (.*)", block):
        return f"<h3>{_inline(heading[1])}</h3>"
    return f"<p>{_inline(block)}</p>"


def _inline(text: str) -> str:
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    marked = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", marked)
    return re.sub(r"\\([*|_\\])", r"\1", marked)


def _prose(title: str, text: str) -> str:
    """A text under its heading."""
    name = title.lower()
    head = f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>'
    return f'{head}\n<div class="prose">\n{_html(text)}\n</div>\n</section>\n'


def _section(title: str, table: pd.DataFrame) -> str:
    """A table under its heading."""
    columns = list(_columns(table))
    heads = "".join(f'<th scope="col"{_class(c)}><button>{escape(c.head)}</button></th>' for c in columns)
    rows = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in zip(*(c.cells for c in columns), strict=True))
    name = escape(title)
    return (
        f'<section aria-label="{name}">\n<h2>{name}</h2>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}, scrolls">\n'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n</section>"
    )


@dataclass(frozen=True)
class _Column:
    head: str
    cells: list[str]
    numeric: bool


def _class(column: _Column) -> str:
    return ' class="number"' if column.numeric else ""


def _columns(table: pd.DataFrame) -> Iterator[_Column]:
    """The columns as they are shown; a mean and its deviation are one."""
    for name in map(str, table.columns):
        stem = name.removesuffix("_mean")
        if name.endswith("_std") and f"{name.removesuffix('_std')}_mean" in table:
            continue
        spread = table.get(f"{stem}_std") if stem != name else None
        head = _HEADS.get(stem if spread is not None else name) or name.replace("_", " ")
        if pd.api.types.is_numeric_dtype(table[name]):
            yield _Column(head, _number_cells(table[name], spread), numeric=True)
        else:
            texts = [
                "" if pd.isna(value) else escape(_HEADS.get(str(value), str(value))) for value in table[name]
            ]
            yield _Column(head, [f"<td>{text}</td>" for text in texts], numeric=False)


def _number_cells(values: "pd.Series[float]", spread: "pd.Series[float] | None") -> list[str]:
    digits = _digits(values)
    deviations = [None] * len(values) if spread is None else spread.tolist()
    return [_number_cell(v, s, digits) for v, s in zip(values.tolist(), deviations, strict=True)]


def _number_cell(value: Any, deviation: Any, digits: int) -> str:
    if pd.isna(value):
        return '<td class="number" data-value=""></td>'
    shown = f"{value:.{digits}f}"
    if deviation is not None and not pd.isna(deviation):
        shown += f" ± {deviation:.{digits}f}"
    return f'<td class="number" data-value="{value}">{shown.replace("-", "−")}</td>'


def _digits(values: "pd.Series[float]") -> int:
    """After the point: none of whole numbers, more the smaller the largest is."""
    known = values.dropna().astype(np.float64)
    if (known == known.round()).all():
        return 0
    return 4 if known.abs().max() <= 1 else 2 if known.abs().max() < 1000 else 0
