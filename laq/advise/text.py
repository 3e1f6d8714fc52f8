"""The answer in words: Markdown for a file, and a few lines for a terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import pandas as pd

from laq.advise.choice import Wanted, nearest
from laq.advise.export import LOADING
from laq.quantization.methods.registry import BASELINE, label_of
from laq.report.rendering import markdown_table, templates
from laq.report.tables import BASE_OF
from laq.study.tables import IMAGES_OF
from laq.subsets.subset import Subset

NETWORKS: Final = {"original": "original", "finetuned": "fine-tuned"}
_MOST_NAMED: Final = 5
_TEMPLATES: Final = "laq.advise"


@dataclass(frozen=True)
class Findings:
    """The measured candidates with the request that they were judged by.

    ``table`` was made by ``choice.judged``. ``dataset`` and ``network`` are names; ``outputs`` is the number
    of the whole network's outputs.
    """

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
        """The names of the classes, at most five of them, and the dataset."""
        names, k = self.subset.class_names, len(self.subset.classes)
        shown = ", ".join(names if k <= _MOST_NAMED else [*names[: _MOST_NAMED - 2], "…"])
        return f"{shown} ({k} classes of {self.dataset})"


def answer(found: Findings) -> str:
    """One line: the smallest network that keeps the accuracy, or else the candidates that come nearest."""
    text = templates(_TEMPLATES).get_template("answer.md")
    limit = found.wanted.max_bytes
    told = text.render(
        found=found,
        chosen=found.chosen,
        limit=limit,
        limited=isfinite(limit),
        nearest=nearest(found.table),
        smallest=found.table[found.table.method != "float"].to_dict("records")[0],
        named=named,
        times=times,
        interval_of=interval_of,
    )
    return " ".join(told.split())


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


def interval_of(row: Mapping[Any, Any]) -> str:
    """The 95 % interval of the accuracy in percent."""
    return f"{row['low_percent']:.1f} to {row['high_percent']:.1f}"


def wishes(found: Findings) -> str:
    """The request: the least accuracy, and the largest size."""
    limit = found.wanted.max_bytes
    size = f"at most {limit / 1024:g} KiB" if isfinite(limit) else "of any size"
    return f"at least {found.wanted.top1_percent:.1f} % top-1, {size}"


def markdown(found: Findings, provenance: Mapping[str, str], again: float | None) -> str:
    """The answer, the table of all candidates, how to load the network, and where all of it comes from.

    Args:
        found: the judged candidates.
        provenance: what the networks were made from: names and hashes.
        again: restricted top-1 of the delivered file, measured after loading it; None if there is no file.
    """
    text = templates(_TEMPLATES).get_template("advice.md")
    origins = pd.DataFrame(provenance.items(), columns=["input", "value"])
    return text.render(
        answer=answer(found),
        wishes=wishes(found),
        k=len(found.subset.classes),
        n=found.original["n"],
        outputs=found.outputs,
        candidates=markdown_table(_as_texts(found.table)),
        balanced="balanced_percent" in found.table,
        again=again,
        loading=LOADING,
        provenance=markdown_table(origins) if provenance else "",
    )


def _as_texts(table: pd.DataFrame) -> pd.DataFrame:
    """The candidates as texts, by the headings of the table that people read."""
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
                "": "→" if row["chosen"] else "P" if row["pareto"] else "",
                "network": _network(row),
                "method": ", ".join([label_of(row["method"]), *images]),
                "bits": row["bits"],
                "KiB": kib(row),
                "smaller": f"{times(row)}×",
                "top-1 %": f"{row['top1_sub_percent']:.1f}",
                "95 %": interval_of(row),
                **({"balanced %": f"{row['balanced_percent']:.1f}"} if "balanced_percent" in row else {}),
                "points lost": "" if row["variant"] == "original" else f"{row['lost_points']:z.1f}",
            }
        )
    return pd.DataFrame(rows)


def for_terminal(found: Findings, folder: str) -> str:
    """The answer, the best candidates beside float and round-to-nearest, and the folder with the rest."""
    table, row = found.table, found.chosen
    shown = table.pareto | table.chosen | (table.method == "float")
    if row is not None:
        same = (table.variant == row["variant"]) & (table.bits == row["bits"])
        shown |= same & (table.method == BASELINE)
    few = _as_texts(table)[shown].to_string(index=False)
    candidates = int((table.method != "float").sum())
    return (
        f"{answer(found)}\n\n{few}\n\n→ marks the chosen network, P those that no candidate beats in size "
        f"and accuracy. All {candidates} candidates, with a figure: {folder}"
    )
