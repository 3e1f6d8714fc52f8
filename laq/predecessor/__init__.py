"""Command ``predecessor``: analyses logs of the predecessor, LabelAwareQuantization, like a study.

The report says how far the predecessor's claim holds, and why.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from laq.errors import LaqError
from laq.files import replacing_file, replacing_folder
from laq.predecessor.logs import column_of, log_table, members_of, read_rows, subset_names
from laq.report.analysis import Analysis, analyse
from laq.report.dependence import INACCURACY, NEARNESS
from laq.report.divergences import divergences_in
from laq.report.markdown import answers_text, markdown
from laq.report.mixed_model import Models
from laq.report.rendering import markdown_table, number, templates
from laq.sections.report import Report

FOLDER: Final = Path("data/predecessor")
TEXT: Final = "report.md"
CLAIM: Final = -0.9  # Spearman's rho of drop and median divergence that the predecessor reports
_VARIANTS: Final = {
    "original": "original",
    "quantized": "quantized",
    "finetuned": "fine-tuned",
    "finetuned_quantized": "both",
}
_FINE: Final = 16  # from so many bits on, rounding costs nothing


@dataclass(frozen=True)
class Log:
    """One of the predecessor's logs: its name, its unchanged rows, our analysis and its parameters."""

    name: str
    rows: pd.DataFrame
    analysis: Analysis
    params: Report

    @property
    def bits(self) -> int:
        """The bits as logged; their mean if they differ by layer."""
        return int(self.rows.Bits.iloc[0])

    def accuracy(self, variant: str, side: str) -> float:
        """Mean top-1 in percent over all logged rows; a subset that was logged twice counts twice."""
        return 100 * float(self.rows[column_of(variant, f"top1_{side}_percent")].mean())

    def drops(self, side: str) -> pd.Series:
        """The points of top-1 lost in every logged row."""
        before, after = (self.rows[column_of(v, f"top1_{side}_percent")] for v in ("original", "quantized"))
        return 100 * (before - after)

    def rho(self, side: str) -> float:
        """Spearman's rho of drop and median divergence over all logged rows; NaN if one is constant."""
        return float(self.rows.Median_KL.rank().corr(self.drops(side).rank()))

    def losses(self) -> "pd.Series[float]":
        """The points of restricted top-1 lost on every different subset, by its classes."""
        return self.drops("sub").groupby(self.rows.classes).mean()

    def more_than(self, other: "Log") -> "pd.Series[float]":
        """The points that this log loses more than ``other``, for every subset of both."""
        return (self.losses() - other.losses()).dropna()

    def mean(self, values: "pd.Series[float]") -> Mapping[str, float]:
        """The mean of values by the classes of subsets, with its interval, by the columns of the tables."""
        subsets = pd.Index([subset_names(self.rows)[classes] for classes in values.index])
        model = Models(members_of(self.rows), self.params).of(subsets)
        return model.estimate(np.asarray(values, dtype=np.float64)[None]).row(0)

    def found(self, score: str, beside: str = "") -> Mapping[Hashable, Any]:
        """The original network's row in the table of dependence: the effect of halving the divergence."""
        rows = self.analysis.dependence
        asked = {"variant": "quantized", "score": score, "variable": NEARNESS, "beside": beside}
        return rows[(rows[list(asked)] == pd.Series(asked)).all(axis=1)].to_dict("records")[0]


def run(paths: Sequence[Path], params: Report) -> str:
    """Analyse the predecessor's logs and write the results to ``data/predecessor``; returns the report.

    The folder gets ``report.md``, which compares all logs, and a folder for each log with its own report and
    tables.

    Raises:
        LaqError: a file is missing or is no log of the predecessor's, or two have the same name.
    """
    names = [path.stem for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LaqError(f"LOG: {', '.join(twice)} is given more than once; give each log once")
    logs = [read_log(path, params) for path in paths]
    for log in logs:
        with replacing_folder(FOLDER / log.name) as folder:
            log.analysis.table.to_csv(folder / "measurements.csv", index=False)
            for name, table in log.analysis.tables().items():
                table.to_csv(folder / name, index=False)
            answered = answers_text(log.analysis, log.params, asked_before=False)
            (folder / TEXT).write_text(markdown(log.analysis, answered), encoding="utf-8")
    text = describe(logs, params)
    with replacing_file(FOLDER / TEXT) as partial:
        partial.write_text(text, encoding="utf-8")
    return text


def read_log(path: Path, params: Report) -> Log:
    """Read and analyse one log; a subset that was logged twice counts as one subset with two seeds.

    Raises:
        LaqError: the file is missing or is no log of the predecessor's.
    """
    rows = read_rows(path)
    table = log_table(rows)
    quantized = table[table.variant == "quantized"].iloc[0]
    own = {"bits": int(quantized.bits), "method": quantized.method}  # a log is of one method and bit-width
    asked = params.model_copy(update={"primary": params.primary.model_copy(update=own)})
    analysis = analyse(table, divergences_in(table, members_of(rows)), asked)
    return Log(path.stem, rows, replace(analysis, title=f"{path.stem}: {analysis.title}"), asked)


def describe(logs: Sequence[Log], params: Report) -> str:
    """The report on all logs: their logged means, and how the predecessor's claim fares."""
    fine = [log for log in logs if log.bits >= _FINE]
    text = templates("laq.predecessor").get_template("summary.md")
    return text.render(
        logs=logs,
        table=markdown_table(pd.DataFrame([_as_logged(log) for log in logs])),
        claim=CLAIM,
        confidence=f"{100 * params.confidence:g}",
        fine=fine,
        fine_bits=_FINE,
        finest=max(fine, key=lambda log: log.bits, default=None),
        inaccuracy=INACCURACY,
    )


def _as_logged(log: Log) -> dict[str, object]:
    """The log's row in the table of logged means."""
    drop = " / ".join(f"{log.drops(side).mean():z.1f}" for side in ("all", "sub"))
    rhos = {f"rho ({name})": log.rho(side) for name, side in (("all", "all"), ("subset", "sub"))}
    accuracies = {
        name: f"{log.accuracy(variant, 'all'):.1f} / {log.accuracy(variant, 'sub'):.1f}"
        if column_of(variant, "top1_sub_percent") in log.rows
        else ""
        for variant, name in _VARIANTS.items()
    }
    return {
        "log": log.name,
        "bits": log.bits,
        "rows": len(log.rows),
        **accuracies,
        "drop": drop,
        **{name: number(rho, "+z.2f") or "undefined" for name, rho in rhos.items()},
    }
