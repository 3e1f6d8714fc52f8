"""The comparison of two studies as Markdown."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pandas as pd

from laq.compare.pairing import INPUTS, SIDES, Comparison, alone, each, paired
from laq.quantization.methods.registry import label_of
from laq.report.rendering import markdown_table, numbers, spread, templates
from laq.report.tables import BASE_OF
from laq.study.tables import IMAGES_OF


def markdown(pair: Comparison, table: pd.DataFrame, cautions: Sequence[str] = ()) -> str:
    """The whole text: both studies, their settings that differ, the matching cells, and each study alone.

    Args:
        pair: the studies.
        table: their cells, as ``pairing.match`` joins them.
        cautions: what a reader must know first, a sentence each.
    """
    shared, studies = table.found == "both", (pair.first, pair.second)
    about = {
        "study": SIDES,
        "run": [study.run for study in studies],
        "DVC experiment": [study.experiment for study in studies],
        "sent (UTC)": [f"{datetime.fromtimestamp(s.started / 1000, UTC):%Y-%m-%d %H:%M}" for s in studies],
    }
    differences, unmatched = pair.differences(), alone(table)
    text = templates("laq.compare").get_template("comparison.md")
    return text.render(
        title=pair.title,
        studies=markdown_table(pd.DataFrame(about)),
        cautions=cautions,
        differences=differences and markdown_table(pd.DataFrame(differences, columns=["setting", *SIDES])),
        other_inputs=[name for name in INPUTS if pair.first.inputs.get(name) != pair.second.inputs.get(name)],
        pairs=int((shared & (table.method != "float")).sum()),
        unmatched=unmatched,
        paired=markdown_table(_paired(paired(table))) if shared.any() else "",
        each=markdown_table(_each(each(table))) if unmatched else "",
    )


def _paired(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``pairing.paired`` as texts, by the table's headings."""
    return pd.DataFrame(
        {
            **_recipes(rows),
            "n": rows.n,
            **{side: numbers(rows[f"mean_{side}"], "z.2f") for side in SIDES},
            "difference": spread(rows.difference_mean, rows.difference_std, "+z.2f"),
            **{f"KiB, {side}": numbers(rows[f"bytes_{side}"] / 1024, ".1f") for side in SIDES},
        }
    )


def _each(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``pairing.each`` as texts, by the table's headings."""
    columns = _recipes(rows)
    for side in SIDES:
        columns[f"n, {side}"] = rows[f"n_{side}"].replace(0, "")
        columns[side] = spread(rows[f"mean_{side}"], rows[f"std_{side}"], "z.2f")
        columns[f"KiB, {side}"] = numbers(rows[f"bytes_{side}"] / 1024, ".1f")
    return pd.DataFrame(columns)


def _recipes(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns that say which network was quantized, and how."""
    images = rows.calibration.map(lambda used: f", images of {IMAGES_OF[used]}" if used in IMAGES_OF else "")
    return {
        "network": rows.variant.replace(BASE_OF),
        "method": rows.method.map(label_of) + images,
        "bits": rows.bits,
    }
