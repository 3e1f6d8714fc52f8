"""The predecessor's own logs, asked the study's questions: what of its claim holds, and what it is due to."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from laq.errors import LaqError
from laq.files import replacing_file, replacing_folder
from laq.params import Report
from laq.predecessor.logs import VARIANTS, column_of, log_table, members_of, read_rows
from laq.report.analysis import Analysis, analyse
from laq.report.answers import answers
from laq.report.correlations import DEPENDENCE
from laq.report.divergences import distances_in
from laq.report.markdown import answers_text, line, markdown
from laq.report.paired_tests import Effects, paired_effects
from laq.report.rank_correlation import Sides, correlate

FOLDER: Final = Path("data/predecessor")
TEXT: Final = "report.md"
CLAIM: Final = -0.9  # Spearman's rho of drop and median divergence, as the predecessor gives it
_FINE: Final = 16  # bits from which on rounding has nothing left to lose


@dataclass(frozen=True)
class Log:
    """One of the predecessor's logs: its name, its rows as they are, and what our analysis makes of them."""

    name: str
    rows: pd.DataFrame
    analysis: Analysis

    @property
    def bits(self) -> int:
        """The bits that the log gives; the mean ones where they differ by layer."""
        return int(self.rows.Bits.iloc[0])

    def accuracy(self, variant: str, side: str) -> float:
        """Mean top-1 in percent over all rows as logged, which count a repeated subset twice."""
        return 100 * float(self.rows[column_of(variant, f"top1_{side}_percent")].mean())

    def drops(self, side: str) -> pd.Series:
        """Points of top-1 lost by every row as logged."""
        before, after = (self.rows[column_of(v, f"top1_{side}_percent")] for v in ("original", "quantized"))
        return 100 * (before - after)

    def rho(self, side: str) -> float:
        """Spearman's rho of drop and median divergence over all rows as logged."""
        x, y = (np.array([column], dtype=np.float64) for column in (self.rows.Median_KL, self.drops(side)))
        return float(correlate(Sides(x, y, np.zeros((0, x.shape[1]))))[0, 0, 0])

    def change(self) -> pd.Series:
        """Points of restricted top-1 lost by every different subset, by its classes."""
        return self.drops("sub").groupby(self.rows.classes).mean()

    def found(self, score: str, measure: str) -> Mapping[Hashable, Any]:
        """The row of the analysis that tells of the original network."""
        rows = self.analysis.correlations
        asked = {"question": DEPENDENCE, "variant": "quantized", "score": score, "measure": measure}
        return rows[(rows[list(asked)] == pd.Series(asked)).all(axis=1)].to_dict("records")[0]


def run(paths: Sequence[Path], params: Report) -> str:
    """Analyse the predecessor's logs; returns what was found as Markdown, which is also written.

    Into ``data/predecessor``: ``report.md`` of all logs beside each other, and a folder for each with its own
    and its tables.

    Raises:
        LaqError: a log is missing, is no such log, or two have the same name.
    """
    names = [path.stem for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LaqError(f"{', '.join(twice)} is given more than once; give each log once")
    logs = [read_log(path, params) for path in paths]
    for log in logs:
        with replacing_folder(FOLDER / log.name) as folder:
            for name, table in log.analysis.tables().items():
                table.to_csv(folder / name, index=False)
            answered = answers_text(answers(log.analysis, params), params)
            (folder / TEXT).write_text(markdown(log.analysis, answered), encoding="utf-8")
    text = describe(logs, params)
    with replacing_file(FOLDER / TEXT) as partial:
        partial.write_text(text, encoding="utf-8")
    return text


def read_log(path: Path, params: Report) -> Log:
    """One log, analysed like a study: a subset that was logged twice is one subset with two seeds.

    Raises:
        LaqError: the file is missing, or is no log of the predecessor's.
    """
    rows = read_rows(path)
    table = log_table(rows)
    analysis = analyse(table, distances_in(table, members_of(rows)), params)
    return Log(path.stem, rows, replace(analysis, title=f"{path.stem}: {analysis.title}"))


def describe(logs: Sequence[Log], params: Report) -> str:
    """All logs beside each other, as logged and as found, and what its claim comes to."""
    about = "Means over all rows as they were logged, top-1 in percent among all classes / the subset's."
    blocks = [
        "# The predecessor's logs",
        about,
        "\n".join(_as_logged(logs)),
        f"## Its claim: rho of drop and median divergence is about {CLAIM}",
        "\n".join(f"- {text}" for text in [*_claim(logs, params), *_clipping(logs, params), *_gains(logs)]),
    ]
    return "\n\n".join(blocks) + "\n"


def _as_logged(logs: Sequence[Log]) -> Iterator[str]:
    yield "| log | bits | rows | original | quantized | fine-tuned | both | drop | rho (all) | rho (subset) |"
    yield "|---" * 10 + "|"
    for log in logs:
        pairs = [
            f"{log.accuracy(v, 'all'):.1f} / {log.accuracy(v, 'sub'):.1f}"
            if column_of(v, "top1_sub_percent") in log.rows
            else ""
            for v in VARIANTS
        ]
        drop = " / ".join(f"{log.drops(side).mean():z.1f}" for side in ("all", "sub"))
        found = (log.rho(side) for side in ("all", "sub"))
        rhos = ("undefined" if np.isnan(rho) else f"{rho:+z.2f}" for rho in found)
        yield line(log.name, log.bits, len(log.rows), *pairs, drop, *rhos)


def _claim(logs: Sequence[Log], params: Report) -> Iterator[str]:
    """A line per log: rho of both drops over different subsets, and the partial one."""
    for log in logs:
        every, restricted = (log.found(score, "rho") for score in ("drop_all_points", "drop_sub_points"))
        held = log.found("drop_sub_points", "partial_rho")
        yield (
            f"{log.name}, {every['n']} different subsets: {_rho(every)} among all classes"
            f"{_agreement(every, params)}, {_rho(restricted)} among the subset's; "
            f"{_rho(held)} with the accuracy before quantization held fixed"
        )


def _agreement(row: Mapping[Hashable, Any], params: Report) -> str:
    if pd.isna(row["effect"]):
        return ""
    agrees = row["low"] <= CLAIM <= row["high"]
    verdict, verb = ("agrees", "holds") if agrees else ("does not agree", "misses")
    return f" ({verdict}: the {100 * params.confidence:g} % interval {verb} {CLAIM})"


def _rho(row: Mapping[Hashable, Any]) -> str:
    if pd.isna(row["effect"]):
        return "undefined"
    return f"{row['effect']:+z.2f} ({row['low']:+z.2f} to {row['high']:+z.2f})"


def _clipping(logs: Sequence[Log], params: Report) -> Iterator[str]:
    """What is lost where rounding loses nothing, and how the drop of other logs differs from that."""
    fine = [log for log in logs if log.bits >= _FINE]
    if not fine:
        yield f"no log has {_FINE} bits or more, which would tell what rounding costs from what clipping does"
        return
    for log in fine:
        effect = paired_effects(log.change().to_numpy()[None], params)
        rho = _rho(log.found("drop_sub_points", "rho"))
        told = f"at {log.bits} bits {_points(effect)} of restricted top-1 are lost, with rho {rho}"
        if effect.low[0] > 0:
            told += (
                f". Steps of 2^-{log.bits - 1} of the radius leave nothing to rounding: this is clipping. "
                "One radius per layer, from the mean over neurons of the largest |w|, cuts the larger rows"
            )
        yield told
    finest = max(fine, key=lambda log: log.bits)
    for log in logs:
        change = (log.change() - finest.change()).dropna()
        if log is not finest and len(change):
            more = _points(paired_effects(change.to_numpy()[None], params))
            yield f"{log.name} loses {more} more than {finest.name}, n = {len(change)} shared subsets"


def _points(effect: Effects) -> str:
    interval = "" if np.isnan(effect.low[0]) else f" ({effect.low[0]:z.1f} to {effect.high[0]:z.1f})"
    return f"{effect.effect[0]:z.1f}{interval} points"


def _gains(logs: Sequence[Log]) -> Iterator[str]:
    """Drops among all classes that are none."""
    for log in logs:
        lost = log.drops("all").mean()
        every, restricted = (log.accuracy("quantized", side) for side in ("all", "sub"))
        if lost < 0:
            yield (
                f"{log.name}: among all classes {-lost:.1f} points are gained, not lost. Calibrated on the "
                f"subset's images, the network hardly answers with other classes ({every:.1f} % among all, "
                f"{restricted:.1f} % among the subset's): rho of this drop tells where much was to be gained"
            )
