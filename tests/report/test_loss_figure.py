"""The figure of points lost shows every subset, and each mean with its interval."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from laq.report import loss_figure
from laq.report.loss_figure import draw_points_lost


def test_every_subset_is_a_point_and_every_mean_has_its_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(loss_figure, "Figure", lambda **more: drawn.append(Figure(**more)) or drawn[0])
    lost = {("2", "gpfq"): [4.0, 6.0], ("2", "rtn"): [20.0, 30.0], ("auto:3", "gpfq"): [-0.5, 1.5]}
    cells = pd.DataFrame(
        {"variant": "quantized", "method": method, "bits": bits, "mean_bits": 2.0, "drop_sub_points": points}
        for (bits, method), values in lost.items()
        for points in values
    )
    effects = pd.DataFrame(
        {
            "question": "loss", "score": "drop_sub_points", "first": "quantized", "variant": "",
            "method": method, "bits": bits, "effect": np.mean(values), "low": min(values), "high": max(values),
        }
        for (bits, method), values in lost.items()
    )  # fmt: skip
    draw_points_lost(tmp_path / "lost.png", cells, effects, "a study")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "auto:3"]
    clouds = [np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)]
    assert sorted(y for cloud in clouds for y in cloud[:, 1]) == sorted(p for v in lost.values() for p in v)
    # Points stay on the side of their own bits.
    assert all(round(x) == (0 if y > 1.5 else 1) for cloud in clouds for x, y in cloud)
    bars = [c.get_segments() for c in axes.collections if isinstance(c, LineCollection)]
    assert sorted(tuple(s[:, 1]) for some in bars for s in some) == [(-0.5, 1.5), (4.0, 6.0), (20.0, 30.0)]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["round-to-nearest", "GPFQ"]
    assert (tmp_path / "lost.png").stat().st_size > 5000
