"""Charts: their tables, what a specification shows of them, and their files."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import vl_convert
import yaml
from PIL import Image

from laq.charts import class_map, divergence_matrix
from laq.charts.files import as_dict, write
from laq.charts.flips import flips
from laq.charts.methods import colour, shape
from laq.charts.points_lost import points_lost
from laq.charts.registry import CHARTS
from laq.charts.theme import Caption
from laq.divergence.plane import class_plane
from laq.quantization.methods.registry import METHODS, all_names, look_of
from laq.report.comparisons import comparisons
from laq.report.dependence import dependence
from laq.report.divergences import divergences_in, members_of
from laq.report.layers import COLUMNS as LAYER_COLUMNS
from laq.report.layers import layer_means
from laq.report.plotted import COLUMNS, in_order, plotted
from laq.report.tables import main_rows, over_seeds, with_drops
from tests.conftest import ROOT
from tests.studies import Planted, made_up_matrix, made_up_study, made_up_subsets, report_params

STUDY = Caption("a study", 0.95, "gpfq", "2")


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    subsets = made_up_subsets(12, made_up_matrix(), sizes=(5, 7))
    table = with_drops(made_up_study(subsets, Planted(distance=1, gpfq=2)))
    params, members = report_params(199), members_of(subsets)
    return {
        "cells": over_seeds(table),
        "comparisons": main_rows(comparisons(table, members, params)),
        "dependence": main_rows(dependence(table, divergences_in(table, members), params)),
    }


@pytest.fixture(scope="module")
def rows(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    found = plotted(**tables)
    gained = np.random.default_rng(0).uniform(0, 2, len(found))
    return found.assign(flips_gained_percent=gained, flips_lost_percent=gained + found.lost_points)


@pytest.fixture(scope="module")
def layers() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    subsets = made_up_subsets(2, made_up_matrix(), sizes=(5,))
    table = made_up_study(subsets, Planted())
    each = [
        {"cell": cell, "layer": f"body.{name}", "bits": 3, "weights": 9, "levels": 7,
         "sparsity_percent": rng.uniform(0, 90), "relative_error": rng.uniform(0, 1)}
        for cell in table.cell[table.method != "float"] for name in ("stem", "block.0", "head")
    ]  # fmt: skip
    return layer_means(pd.DataFrame(each), table)


@pytest.fixture(scope="module")
def tables_of(rows: pd.DataFrame, layers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables that charts are drawn from."""
    return {"plotted": rows, "layers": layers}


def test_the_table_of_layers_has_means_in_the_order_of_execution(layers: pd.DataFrame) -> None:
    assert list(layers) == LAYER_COLUMNS
    for _, group in layers.groupby(["network", "method", "bits"]):
        assert list(group.layer) == ["body.stem", "body.block.0", "body.head"]
        assert set(group.subsets) == {2}
        assert group.relative_error.between(0, 1).all()


def test_the_table_has_every_cell_once_with_the_interval_of_its_mean(
    rows: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> None:
    assert list(rows) == COLUMNS
    assert not rows.duplicated(["network", "method", "bits", "subset"]).any()
    assert len(rows) == len(main_rows(tables["cells"].query("method != 'float'")))
    means = rows.groupby(["network", "method", "bits"])[["lost_points", "mean_low", "mean_high"]].mean()
    assert (means.mean_low < means.lost_points).all()
    assert (means.lost_points < means.mean_high).all()
    assert list(rows.sort_values("bits_place").bits.unique()) == ["2", "4", "auto:2"]


def test_the_fit_is_a_line_with_the_slope_of_the_table_of_dependence(
    rows: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> None:
    asked = (
        "score == 'drop_sub_points' and variable == 'halved divergence' and beside == '' and method == 'gpfq'"
    )
    slope = tables["dependence"].query(f"{asked} and bits == '2' and variant == 'quantized'").iloc[0]
    cell = rows.query("network == 'original network' and method == 'gpfq' and bits == '2'")
    for _, group in cell.groupby("classes"):
        for name, expected in (("fit", slope.effect), ("fit_low", slope.low), ("fit_high", slope.high)):
            if name == "fit":
                fitted = -np.polyfit(np.log2(group.nats), group[name], 1)[0]
                assert fitted == pytest.approx(expected, abs=0.01)
        assert group.fit.mean() == pytest.approx(group.lost_points.mean(), abs=0.001)
        assert (group.fit_low <= group.fit + 1e-9).all()
        assert (group.fit <= group.fit_high + 1e-9).all()


def test_bits_that_differ_by_layer_come_after_those_that_do_not() -> None:
    spent = {"3": 3.0, "auto:3": 2.9, "10": 10.0, "2": 2.0, "8,4": 4.2}
    table = pd.DataFrame({"bits": spent.keys(), "mean_bits": spent.values()})
    assert in_order(table) == ["2", "3", "10", "auto:3", "8,4"]


def test_methods_look_the_same_in_every_chart_and_unlike_each_other() -> None:
    looks = [(look_of(name).colour, look_of(name).shape) for name in METHODS]
    assert len({c for c, _ in looks}) == len({s for _, s in looks}) == len(METHODS)
    few, every, shapes = (
        cast(dict[str, Any], channel.to_dict())["scale"]
        for channel in (colour(["qronos", "gpfq", "float"]), colour(), shape())
    )
    assert few["domain"] == ["gpfq", "qronos"]
    assert set(zip(few["domain"], few["range"], strict=True)) < set(
        zip(every["domain"], every["range"], strict=True)
    )
    assert shapes["range"] == [look_of(name).shape for name in all_names()]
    # Tuned networks have their method's colour.
    assert look_of("qronos-tuned").colour == look_of("qronos-tuned-all").colour == look_of("qronos").colour
    assert len({look_of(name).shape for name in ("qronos", "qronos-tuned", "qronos-tuned-all")}) == 3


def compiled(chart: Any) -> dict[str, Any]:
    """The Vega specification, as a text that names of fields can be looked for in."""
    made: dict[str, Any] = vl_convert.vegalite_to_vega(as_dict(chart), vl_version="6.4")
    return made


@pytest.mark.parametrize("name", CHARTS)
def test_each_chart_is_a_picture_of_the_same_bytes_each_time(
    name: str, tables_of: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    rows = tables_of[CHARTS[name].table]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        write(path, CHARTS[name].picture(rows, STUDY))
    with Image.open(paths[0]) as picture:
        assert 900 < picture.width < 1700  # text is large enough on a telephone
        colours = {tuple(np.array(c)) for c in np.array(picture.convert("RGB")).reshape(-1, 3)[::7]}
        assert len(colours) > 20
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_images_lost_and_gained_are_bars_on_either_side_and_their_difference_a_line(
    rows: pd.DataFrame,
) -> None:
    shown = rows[rows.network == "original network"]
    drawn = vl_convert.vegalite_to_scenegraph(as_dict(flips(shown, set(shown.method))), vl_version="6.4")
    cells = shown.groupby(["method", "bits"]).ngroups
    bars = [mark for mark in marks(drawn["scenegraph"], "rect") if "fill" in mark and mark.get("height")]
    gained = [mark for mark in bars if mark.get("fillOpacity") == 0.5]
    lines = [mark for mark in bars if mark["fill"] == "#1b1f23"]
    lost = [mark for mark in bars if mark not in gained and mark not in lines]
    assert [len(some) for some in (lost, gained, lines)] == [cells] * 3
    (zero,) = {mark["y"] for mark in gained}
    assert all(mark["y"] + mark["height"] == pytest.approx(zero) for mark in lost)


def test_every_subset_is_a_point_on_the_side_of_its_method(rows: pd.DataFrame) -> None:
    shown = rows[rows.network == "original network"]
    drawn = vl_convert.vegalite_to_scenegraph(
        as_dict(points_lost(shown, set(shown.method))), vl_version="6.4"
    )
    symbols = list(marks(drawn["scenegraph"], "symbol"))
    faint = [mark for mark in symbols if mark.get("opacity") == 0.28]
    assert len(faint) == len(shown)
    means = [mark for mark in symbols if mark.get("size") == 130]
    assert len(means) == shown.groupby(["method", "bits"]).ngroups
    ticks = [mark["text"] for mark in marks(drawn["scenegraph"], "text")]
    assert {"2", "4", "auto:2", "GPFQ", "round-to-nearest", "bits per weight", "points of top-1 lost"} <= set(
        ticks
    )


def marks(node: Any, kind: str, inside: str = "") -> Any:
    """The marks of a scenegraph of one kind."""
    inside = node.get("marktype", inside) if isinstance(node, dict) else inside
    for item in node.get("items", []) if isinstance(node, dict) else node:
        if inside == kind:
            yield item
        yield from marks(item, kind)


@pytest.mark.parametrize("name", CHARTS)
def test_templates_are_of_their_table_alone_and_take_texts(
    name: str, tables_of: dict[str, pd.DataFrame]
) -> None:
    rows = tables_of[CHARTS[name].table]
    text = json.dumps(as_dict(CHARTS[name].template()))
    values = [{key: str(value) for key, value in row.items()} for row in rows.to_dict("records")]
    filled = json.loads(
        text.replace('"<DVC_METRIC_DATA>"', json.dumps([{**row, "rev": "main"} for row in values]))
    )
    drawn = vl_convert.vegalite_to_scenegraph(filled, vl_version="6.4")
    assert "main" in {mark["text"] for mark in marks(drawn["scenegraph"], "text")}
    assert len([*marks(drawn["scenegraph"], "symbol"), *marks(drawn["scenegraph"], "rect")]) > 4


def test_the_map_and_the_matrix_name_every_class(tmp_path: Path) -> None:
    names = ["$\\x$", "it's", "x" * 300, "-dash"]
    rng = np.random.default_rng(0)
    matrix = rng.uniform(1, 2, (4, 4))
    for chart in (
        divergence_matrix.of_classes(matrix + matrix.T, names),
        class_map.picture(class_plane(rng.normal(size=(40, 2)), np.arange(40) % 4), names),
    ):
        drawn = vl_convert.vegalite_to_scenegraph(as_dict(chart), vl_version="6.4")
        texts = {str(mark["text"]) for mark in marks(drawn["scenegraph"], "text")}
        assert {"$\\x$", "it's", "-dash", f"{'x' * 23}…"} <= texts


def test_names_on_the_map_do_not_cover_each_other() -> None:
    points = np.random.default_rng(1).normal(size=(600, 2)) * 0.01
    plane = class_plane(points, np.arange(600) % 30)
    chart = class_map.class_map(plane, [f"class_{c}" for c in range(30)])
    drawn = vl_convert.vegalite_to_scenegraph(as_dict(chart), vl_version="6.4")
    places = [
        (m["x"], m["y"]) for m in marks(drawn["scenegraph"], "text") if str(m["text"]).startswith("class_")
    ]
    assert len(places) == 30
    close = [abs(a[0] - b[0]) < 45 and abs(a[1] - b[1]) < 13 for a in places for b in places if a is not b]
    assert not any(close)


def test_ellipses_on_the_map_are_of_one_standard_deviation() -> None:
    plane = np.array([[0.0, 0.0, 4.0, 0.0, 1.0], [10.0, 5.0, 1.0, 0.9, 1.0]])
    drawn = vl_convert.vegalite_to_scenegraph(
        as_dict(class_map.class_map(plane, ["flat", "slanted"])), vl_version="6.4"
    )
    corners = [(m["x"], m["y"]) for m in marks(drawn["scenegraph"], "line")]
    flat, slanted = np.split(np.array(corners), 2)
    names = {m["text"]: (m["x"], m["y"]) for m in marks(drawn["scenegraph"], "text")}
    scale = np.abs(np.subtract(names["slanted"], names["flat"])) / [10, 5]
    assert np.ptp(flat, axis=0) / scale == pytest.approx([4, 2], rel=0.01)
    assert np.ptp(slanted, axis=0) / scale == pytest.approx([2, 2], rel=0.01)
    away = (slanted - names["slanted"]) / scale
    assert np.corrcoef(away.T)[0, 1] == pytest.approx(-0.9, abs=0.02)  # screens count down


@pytest.mark.parametrize("name", CHARTS)
def test_dvcs_templates_are_those_of_the_charts(name: str) -> None:
    written = (ROOT / ".dvc" / "plots" / f"{name}.json").read_text(encoding="utf-8")
    assert json.loads(written) == as_dict(CHARTS[name].template()), "run `make plots`"
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    assert name in {settings["template"] for plot in plots for settings in plot.values()}
