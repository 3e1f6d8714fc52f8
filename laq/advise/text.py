"""The answer in words: Markdown for a file, and a few lines for a terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, isfinite
from typing import Any, Final

import pandas as pd

from laq.advise.choice import Wanted, alpha_of, chosen_by_estimates, nearest
from laq.advise.export import LOADING
from laq.advise.report import Reported
from laq.quantization.methods.registry import BASELINE, label_of
from laq.report.rendering import markdown_table, templates
from laq.report.tables import BASE_OF
from laq.study.tables import IMAGES_OF
from laq.subsets.subset import Subset

NETWORKS: Final = {"original": "original", "finetuned": "fine-tuned"}
_MOST_NAMED: Final = 5
_SAFE: Final = 1e-6  # of a rounding error in tenths
_TEMPLATES: Final = "laq.advise"


@dataclass(frozen=True)
class Findings:
    """The measured candidates with the request that they were judged by.

    Attributes:
        subset: the classes.
        table: made by ``choice.judged``.
        wanted: the request.
        selection: a sentence that says which images chose, and which report.
        names: of the dataset and the network.
        outputs: the number of the whole network's outputs.
        report: of the delivered network on images that did not choose it; None if none is delivered.
        refused: why the chosen network is not delivered, without times, which differ; empty if it is.
    """

    subset: Subset
    table: pd.DataFrame
    wanted: Wanted
    selection: str
    names: tuple[str, str]
    outputs: int
    report: Reported | None = None
    refused: str = ""

    @property
    def chosen(self) -> Mapping[Any, Any] | None:
        """The row of the network to deliver, if there is one."""
        rows = self.table[self.table.chosen].to_dict("records")
        return rows[0] if rows else None

    @property
    def original(self) -> Mapping[Any, Any]:
        """The row of the original network in float."""
        return self.table[self.table.variant == "original"].to_dict("records")[0]

    @property
    def title(self) -> str:
        """The names of the classes, at most five of them, and the dataset."""
        names, k = self.subset.class_names, len(self.subset.classes)
        shown = ", ".join(names if k <= _MOST_NAMED else [*names[: _MOST_NAMED - 2], "…"])
        return f"{shown} ({k} classes of {self.names[0]})"


def answer(found: Findings) -> str:
    """One line: the smallest network that can be promised, or else the candidate that comes nearest."""
    near, table = nearest(found.table, found.wanted), found.table
    needed = near and found.wanted.images_needed(near, alpha_of(table, found.wanted))
    smallest = table[table.method != "float"].to_dict("records")[0]
    failed = table[table.tested & ~table.passed & (table.variant == (near or smallest)["variant"])]
    more = {"failed": next(iter(failed.to_dict("records")), None), "smallest": smallest}
    told = _render(found, "answer.md", near=near, needed=needed, **more)
    return " ".join(told.split())


def _render(found: Findings, template: str, **more: Any) -> str:
    """A template, with the findings and how to tell of a candidate."""
    return (
        templates(_TEMPLATES)
        .get_template(template)
        .render(
            found=found,
            wanted=found.wanted,
            chosen=found.chosen,
            by_estimates=chosen_by_estimates(found.table),
            limited=isfinite(found.wanted.max_bytes),
            sure=f"{100 * found.wanted.confidence:g}",
            named=named,
            times=times,
            **more,
        )
    )


def named(row: Mapping[Any, Any]) -> str:
    """A candidate's method, bits and network; where the bits differ by layer, also their mean."""
    bits = f"{row['bits']} bits"
    if not row["bits"].isdecimal():
        bits = f"{row['bits']} ({row['mean_bits']:.2f} bits a weight)"
    return f"{label_of(row['method'])} at {bits} on the {_network(row)} network"


def _network(row: Mapping[Any, Any]) -> str:
    """The name of the network that a row's network was made from."""
    return NETWORKS[BASE_OF.get(row["variant"], row["variant"])]


def kib(row: Mapping[Any, Any]) -> str:
    """The size of the file in KiB."""
    return f"{row['size_bytes'] / 1024:.1f}"


def times(row: Mapping[Any, Any]) -> str:
    """How many times smaller the file is than the whole network in float32."""
    ratio = row["compression"]
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def request_text(found: Findings) -> str:
    """The request: what may be lost or must be kept, and the largest size."""
    wanted, limit = found.wanted, found.wanted.max_bytes
    size = f"at most {limit / 1024:g} KiB" if isfinite(limit) else "of any size"
    if wanted.lose is None:
        return f"at least {wanted.value:g} % top-1, {size}"
    return f"at most {wanted.lose:g} points lost, {size}"


def markdown(found: Findings, provenance: Mapping[str, str]) -> str:
    """The answer, the table of all candidates, how to load the network, and where all of it comes from.

    Args:
        found: the judged candidates, with the report on the delivered one.
        provenance: what the networks were made from: names and hashes.
    """
    origins = pd.DataFrame(provenance.items(), columns=["input", "value"])
    return _render(
        found,
        "advice.md",
        answer=answer(found),
        request=request_text(found),
        k=len(found.subset.classes),
        chains=found.table.variant[found.table.method != "float"].nunique(),
        candidates=markdown_table(_as_texts(found)),
        balanced="balanced_percent" in found.table,
        loading=LOADING,
        provenance=markdown_table(origins) if provenance else "",
    )


def bound_of(row: Mapping[Any, Any], wanted: Wanted) -> str:
    """What can be said of a candidate for sure, to the digit on the safe side."""
    if wanted.lose is not None:
        return f"≤ {ceil(10 * row['lost_high_points'] - _SAFE) / 10:z.1f}"
    return f"≥ {floor(10 * row['low_percent'] + _SAFE) / 10:.1f} %"


def _as_texts(found: Findings) -> pd.DataFrame:
    """The candidates as texts, by the headings of the table that people read."""
    table = found.table
    learned = table[table.seed.notna()]
    # Images and seed are named only where they tell candidates of one network, method and bits apart.
    several = [name for name in ("calibration", "seed") if len(learned[name].unique()) > 1]
    rows = []
    for row in table.to_dict("records"):
        drawn = {
            "calibration": f"images of {IMAGES_OF.get(row['calibration'])}",
            "seed": f"seed {row['seed']}",
        }
        images = [] if pd.isna(row["seed"]) else [drawn[name] for name in several]
        rows.append(
            {
                "": "→" if row["chosen"] and not found.refused else "P" if row["pareto"] else "",
                "network": _network(row),
                "method": ", ".join([label_of(row["method"]), *images]),
                "bits": row["bits"],
                "KiB": kib(row),
                "smaller": f"{times(row)}×",
                "top-1 %": f"{row['top1_sub_percent']:.1f}",
                **({"balanced %": f"{row['balanced_percent']:.1f}"} if "balanced_percent" in row else {}),
                "points lost": "" if row["variant"] == "original" else f"{row['lost_points']:z.1f}",
                "bound": "" if row["method"] == "float" else bound_of(row, found.wanted),
                "test": "passed" if row["passed"] else "failed" if row["tested"] else "",
            }
        )
    return pd.DataFrame(rows)


def for_terminal(found: Findings, folder: str) -> str:
    """The answer, the best candidates beside float and round-to-nearest, and the folder with the rest.

    Where no network can be promised, an error tells the answer.
    """
    table, row = found.table, found.chosen
    shown = table.pareto | table.chosen | (table.method == "float")
    if row is not None:
        same = (table.variant == row["variant"]) & (table.bits == row["bits"])
        shown |= same & (table.method == BASELINE)
    few = _as_texts(found)[shown].to_string(index=False)
    candidates = int((table.method != "float").sum())
    told = "" if row is None else f"{answer(found)}\n\n"
    arrow = "" if row is None or found.refused else "→ marks the chosen network. "
    return (
        f"{told}{few}\n\n{arrow}P marks those that no candidate beats in size and accuracy. "
        f"All {candidates} candidates, with a figure: {folder}"
    )
