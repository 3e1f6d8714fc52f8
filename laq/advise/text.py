"""The answer in words: Markdown to keep, and a few lines for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import pandas as pd

from laq.advise.choice import Wanted, nearest
from laq.advise.export import LOADING
from laq.quantization.methods.registry import BASELINE, label_of
from laq.report.markdown import line
from laq.report.tables import BASE_OF
from laq.study import IMAGES_OF
from laq.subsets import Subset

NETWORKS: Final = {"original": "original", "finetuned": "fine-tuned"}
_MOST_NAMED: Final = 5
_HEAD: Final = ("", "network", "method", "bits", "KiB", "smaller", "top-1 %", "95 %", "points lost")
_ABOUT: Final = """\
Smallest first. KiB are those of a file for these {k} classes alone: packed codes, the classifier cut to
their rows; of float networks, those of the whole in float32 with its {outputs} outputs, which *smaller*
compares with. Top-1 in percent of the n = {n} test images of these classes, choosing among them, with
Wilson's 95 % interval; points lost against the original network in float. **P**: no candidate is smaller
and as accurate, or as small and more accurate (Pareto); sizes half a percent apart count as equal.
**→**: chosen.

Candidates were chosen and measured on the same {n} test images, so the accuracy of the chosen one is a
little optimistic."""
_USING: Final = """\
`network(pixels)` takes pixels 0..255 of (n, 3, height, width) and returns logits (n, {k}), the outputs in
the order of `about["classes"]`."""


@dataclass(frozen=True)
class Findings:
    """A table that ``choice.judged`` made, what was wanted, and of what: dataset, network and its outputs."""

    subset: Subset
    table: pd.DataFrame
    wanted: Wanted
    dataset: str
    network: str
    outputs: int

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
        """The classes, the first of many."""
        names, k = self.subset.class_names, len(self.subset.classes)
        shown = ", ".join(names if k <= _MOST_NAMED else [*names[: _MOST_NAMED - 2], "…"])
        return f"{shown} ({k} classes of {self.dataset})"


def answer(found: Findings) -> str:
    """One line: the smallest network that keeps the accuracy, or else what comes nearest."""
    row = found.chosen
    if row is None:
        return _refusal(found)
    return (
        f"For {found.title}: {named(row)}, {kib(row)} KiB ({times(row)} times smaller than float32), "
        f"{row['top1_sub_percent']:.1f} % top-1 ({interval_of(row)}, n = {row['n']}), {_against(row)}"
    )


def _refusal(found: Findings) -> str:
    """What was wanted, and what comes nearest to it from either side."""
    limit, near = found.wanted.max_bytes, nearest(found.table)
    original = f"{found.original['top1_sub_percent']:.1f} %"
    wanted = f"keeps {found.wanted.top1_percent:.1f} % top-1 (the original network has {original})"
    if not isfinite(limit):
        return f"For {found.title}: no candidate {wanted}; the most accurate is {_brief(near.most_accurate)}"
    smallest = found.table[found.table.method != "float"].iloc[0]
    within = f"none is so small, the smallest is {_brief(smallest)}"
    if near.most_accurate is not None:
        within = f"the most accurate of that size is {_brief(near.most_accurate)}"
    beyond = "none of any size keeps it"
    if near.smallest is not None:
        beyond = f"the smallest that keeps it is {_brief(near.smallest)}"
    return f"For {found.title}: no candidate of at most {limit / 1024:g} KiB {wanted}; {within}; {beyond}"


def _brief(row: Any) -> str:
    return f"{named(row)} ({kib(row)} KiB, {row['top1_sub_percent']:.1f} %)"


def named(row: Any) -> str:
    """A candidate in words."""
    return f"{label_of(row['method'])} at {_spent(row)} on the {_network(row)} network"


def _spent(row: Any) -> str:
    """The bits as asked for and, where these are not a number, their mean."""
    if row["bits"].isdecimal():
        return f"{row['bits']} bits"
    return f"{row['bits']} ({row['mean_bits']:.2f} bits a weight)"


def _network(row: Any) -> str:
    return NETWORKS[BASE_OF.get(row["variant"], row["variant"])]


def kib(row: Any) -> str:
    """The file's size."""
    return f"{row['size_bytes'] / 1024:.1f}"


def times(row: Any) -> str:
    """How many times smaller than the whole network in float32."""
    ratio = row["compression"]
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def interval_of(row: Any) -> str:
    """Where the accuracy lies, at 95 %."""
    return f"{row['low_percent']:.1f} to {row['high_percent']:.1f}"


def _against(row: Any) -> str:
    lost = round(row["lost_points"], 1)
    if lost == 0:
        return "as accurate as the original"
    return f"{abs(lost):.1f} points {'below' if lost > 0 else 'above'} the original"


def markdown(found: Findings, provenance: Mapping[str, str], again: float | None) -> str:
    """The answer, the table of all candidates, how to load the network, and where all of it comes from.

    Args:
        found: the table.
        provenance: what was worked with, by what it is.
        again: restricted top-1 of the delivered file, read again; none if nothing was delivered.
    """
    table, k, n = found.table, len(found.subset.classes), found.original["n"]
    about = _ABOUT.format(k=k, n=n, outputs=found.outputs)
    rows = _table(_HEAD, _rows(table, _several(table)))
    blocks = [answer(found), f"Wanted: {wishes(found)}.", about, rows]
    if again is not None:
        blocks += [
            f"The delivered file, read again, names {again:.1f} % of the {n} images. In Python:",
            f"```python\n{LOADING}```",
            _USING.format(k=k),
        ]
    blocks.append(_table(("made from", ""), list(provenance.items())))
    return "\n\n".join(blocks) + "\n"


def wishes(found: Findings) -> str:
    """What was wanted."""
    limit = found.wanted.max_bytes
    size = f"{limit / 1024:g} KiB at most" if isfinite(limit) else "of any size"
    return f"{found.wanted.top1_percent:.1f} % at least, {size}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return "\n".join(line(*row) for row in [head, ["---"] * len(head), *rows])


def _several(table: pd.DataFrame) -> list[str]:
    """What tells candidates apart beside network, method and bits."""
    learned = table[table.seed.notna()]
    return [name for name in ("calibration", "seed") if len(learned[name].unique()) > 1]


def _rows(table: pd.DataFrame, several: Sequence[str]) -> list[tuple[str, ...]]:
    return [_row(row, several) for row in table.to_dict("records")]


def _row(row: Mapping[Any, Any], several: Sequence[str]) -> tuple[str, ...]:
    floating = row["method"] == "float"
    drawn = {"calibration": f"images of {IMAGES_OF.get(row['calibration'])}", "seed": f"seed {row['seed']}"}
    images = [] if pd.isna(row["seed"]) else [drawn[name] for name in several]
    return (
        "→" if row["chosen"] else "P" if row["pareto"] else "",
        _network(row),
        ", ".join([label_of(row["method"]), *images]),
        row["bits"],
        kib(row),
        f"{times(row)}×",
        f"{row['top1_sub_percent']:.1f}",
        interval_of(row),
        "" if floating and row["variant"] == "original" else f"{row['lost_points']:z.1f}",
    )


def for_terminal(found: Findings, folder: str) -> str:
    """The answer; candidates that no other beats, float and round-to-nearest; and where the rest is."""
    table, row = found.table, found.chosen
    shown = table.pareto | table.chosen | (table.method == "float")
    if row is not None:
        same = (table.variant == row["variant"]) & (table.bits == row["bits"])
        shown |= same & (table.method == BASELINE)
    few = pd.DataFrame(_rows(table[shown], _several(table)), columns=[*_HEAD])
    candidates = int((table.method != "float").sum())
    return (
        f"{answer(found)}\n\n{few.to_string(index=False)}\n\n"
        f"→: chosen, P: no candidate is smaller and as accurate. All {candidates}, and a picture: {folder}"
    )
