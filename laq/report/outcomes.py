"""How reliable each outcome is: how much of its variance over subsets is not noise of the test images."""

from typing import Final

import numpy as np
import pandas as pd
from scipy.stats import chi2

from laq.quantization.methods.registry import label_of
from laq.report.rendering import markdown_table, number, templates
from laq.report.tables import GROUP, Floats, main_rows
from laq.study.outcomes import ERROR, OUTCOMES, POINTS_LOST

MOST_LOST: Final = 1.0  # points, which the fewest bits that suffice must not reach
FEWEST: Final = "fewest_bits"
_DRAWS: Final = 200
_COLUMNS: Final = ["outcome", *GROUP, "n", "mean", "sd", "noise_sd", "reliability", "low", "high"]
_PLACE: Final = ["subset", "variant", "method", "calibration"]


def reliabilities(cells: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """A row per outcome and group of quantized cells: its reliability over the group's n subsets.

    The reliability is 1 - noise / variance: ``sd`` is the standard deviation over subsets, ``noise_sd`` the
    root of the mean squared standard error from the sampling of test images. It is below 0 where subsets
    differ by less than noise would have them, and missing where they do not differ. ``low`` and ``high`` are
    bounds at this ``confidence`` by the chi-squared distribution of the variance, the noise taken as known.

    Args:
        cells: a row per subset, variant, method, bits and calibration, means over seeds
            (``tables.over_seeds``). As all seeds are scored on the same images, they share their noise.
        confidence: such as 0.95.
    """
    quantized = cells[cells.method != "float"]
    found = [
        _reliability(str(name), key, rows[name], rows[f"{name}{ERROR}"], confidence)
        for name in OUTCOMES
        if f"{name}{ERROR}" in quantized
        for key, rows in quantized.groupby(GROUP, sort=False)
    ]
    if f"{POINTS_LOST}{ERROR}" in quantized:
        found += [
            _reliability(FEWEST, (*key[:2], "", key[2]), rows[FEWEST], rows[f"{FEWEST}{ERROR}"], confidence)
            for key, rows in fewest_bits(cells).dropna().groupby(_PLACE[1:], sort=False)
        ]
    return pd.DataFrame(found, columns=_COLUMNS).round(6)


def _reliability(
    outcome: str, key: object, values: "pd.Series[float]", errors: "pd.Series[float]", confidence: float
) -> dict[str, object]:
    """A row of ``reliabilities``; ``key`` holds the entries of ``GROUP``."""
    n, noise, total = len(values), float((errors**2).mean()), float(values.var())
    share = noise / total if n > 1 and total > 0 else np.nan
    freedom = max(n - 1, 1)
    low, high = (1 - share * float(chi2.ppf((1 + s * confidence) / 2, freedom)) / freedom for s in (1, -1))
    return {
        "outcome": outcome,
        **dict(zip(GROUP, tuple(key), strict=True)),  # type: ignore[arg-type]  # of a group's entries
        "n": n,
        "mean": values.mean(),
        "sd": values.std(),
        "noise_sd": np.sqrt(noise),
        "reliability": 1 - share,
        "low": low,
        "high": high,
    }


def fewest_bits(cells: pd.DataFrame) -> pd.DataFrame:
    """The smallest bit-width at which each subset loses less than one point, by method and calibration.

    It is missing where every bit-width loses more; bits that differ by layer are left out. ``fewest_bits_se``
    is the standard deviation of 200 repetitions, drawn by seed 0, in which each loss is moved by normal noise
    with its standard error, independently between bit-widths; a repetition in which none suffices counts as
    the most bits.
    """
    rows = cells[(cells.method != "float") & cells.bits.str.isdecimal()]
    rows = rows.assign(bits=rows.bits.astype(int)).sort_values("bits", kind="stable")
    found, most = [], rows.groupby(_PLACE).size().max() if len(rows) else 0
    noise = np.random.default_rng(0).normal(size=(_DRAWS, most))
    for key, group in rows.groupby(_PLACE, sort=False):
        bits, lost = group.bits.to_numpy(), group[POINTS_LOST].to_numpy()
        entry = dict(zip(_PLACE, key, strict=True)) | {FEWEST: _first(bits, lost[None])[0]}
        if f"{POINTS_LOST}{ERROR}" in group:
            drawn = _first(bits, lost + noise[:, : len(bits)] * group[f"{POINTS_LOST}{ERROR}"].to_numpy())
            entry[f"{FEWEST}{ERROR}"] = np.nan_to_num(drawn, nan=bits[-1]).std(ddof=1)
        found.append(entry)
    return pd.DataFrame(found, columns=[*_PLACE, FEWEST, f"{FEWEST}{ERROR}"]).round(6)


def _first(bits: Floats, lost: Floats) -> Floats:
    """The first of the ``bits`` (b,) at which few enough points are ``lost`` (n, b), or missing."""
    suffices = lost < MOST_LOST
    return np.where(suffices.any(1), bits[suffices.argmax(1)], np.nan)


def outcomes_text(table: pd.DataFrame) -> str:
    """The reliabilities of the original network's outcomes as Markdown; empty where noise is not known."""
    shown = main_rows(table[(table.variant == "quantized") & table.outcome.isin(list(OUTCOMES))])
    if shown.empty:
        return ""
    rows = [
        {
            **dict(zip(("method", "bits", "n"), (label_of(str(key[0])), *key[1:]), strict=True)),
            **{
                OUTCOMES[name].label: number(value, "z.2f")
                for name, value in zip(group.outcome, group.reliability, strict=True)
            },
        }
        for key, group in shown.groupby(["method", "bits", "n"], sort=False)
    ]
    text = templates("laq.report").get_template("outcomes.md")
    return text.render(
        outcomes=OUTCOMES.values(),
        most_lost=MOST_LOST,
        table=markdown_table(pd.DataFrame(rows)),
    ).strip()
