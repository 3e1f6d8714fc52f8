"""Writes charts: as pictures without a browser, and as JSON for one."""

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import vl_convert
from PIL import Image

from laq.charts.theme import Chart, theme

_VEGA_LITE: Final = "6.4"  # of those that vl_convert has
_SCALE: Final = 2  # pixels of a picture for each of the chart's, for paper and good screens


def write(path: Path, chart: Chart) -> None:
    """Write ``chart`` as PNG or SVG, as the suffix of ``path`` says; each time the bytes are the same."""
    specification = as_dict(chart)
    if path.suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(specification, vl_version=_VEGA_LITE), encoding="utf-8")
    else:
        drawn = vl_convert.vegalite_to_png(specification, vl_version=_VEGA_LITE, scale=_SCALE)
        # Of 256 colours nobody misses one, and the file is a third as large.
        with Image.open(BytesIO(drawn)) as picture:
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


def as_dict(chart: Chart, *, themed: bool = True) -> dict[str, Any]:
    """The Vega-Lite specification with the light theme, or bare for a page that has its own."""
    specification: dict[str, Any] = chart.to_dict()
    if themed:
        return {**specification, "config": theme()}
    return {name: part for name, part in specification.items() if name not in {"$schema", "config"}}


@cache
def vega() -> str:
    """JavaScript for a page: ``vegaEmbed``, ``vega`` and ``vegaLite``, all that shows charts in a browser."""
    exported = "window.vegaEmbed = vegaEmbed; window.vega = vega; window.vegaLite = vegaLite;"
    return vl_convert.javascript_bundle(exported, vl_version=_VEGA_LITE)
