"""How often does `laq advise` choose a network that truly loses more than it promised?

In the project's folder::

    python benchmarks/advise.py > results/advise.md

The published table of CIFAR-100 (`results/cifar100`, subsets of 10 classes) gives each candidate's true
accuracy and size. Images are drawn from it again and again: the float network and its candidates are right
or wrong by latent normal variables with these accuracies, whose correlation with the float network's falls
with the bits. A rule chooses by n such images; whether its choice keeps the promise is known.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from laq.advise.choice import Row, Wanted, chosen_by_estimates, judged
from laq.git import commit
from laq.progress import progress
from laq.report.rendering import markdown_table, number
from laq.study.tables import read_measurements

TABLE: Final = Path("results/cifar100/measurements.csv.gz")
IMAGES: Final = (200, 500, 1000)
# Correlation of a candidate's latent variable with the float network's, by its bits.
CORRELATION: Final = {"2": 0.9, "3": 0.97, "4": 0.99, "auto:3": 0.98, "8": 0.9995}
ALIKE: Final = 0.5  # correlation of what quantization adds between candidates of the same bits
RANKING_NOISE: Final = 0.3  # standard deviation of the logarithm of the distance on training images
_TEXT: Final = """\
# Promises of `laq advise`

`python benchmarks/advise.py --draws {draws}`, commit {commit}.

{how}

There are {subsets} subsets with {draws} draws each, so a row stands on {choices} choices. *Just not kept*
promises 0.01 points less than what one of the candidates truly loses: the hardest case. *Estimate* is the
former rule, which took the smallest candidate whose estimate was good enough; *bound* is the rule with 95 %
confidence. Broken promises are shares of all choices, those without a promise included. What confidence
costs in size is a mean over the choices with a promise; the candidates' files take 98 to 301 KiB.

{table}
"""
PROMISES: Final = ("1 point", "3 points", "just not kept")
Right = NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """A subset's candidates, a row each, the original float network first; ``accuracy`` is the true one."""

    table: pd.DataFrame

    def answers(self, n: int, rng: np.random.Generator) -> Right:
        """Which of n images each network classifies correctly (networks, n)."""
        bits = self.table.bits.to_numpy()
        latent, shared = rng.normal(size=n), {name: rng.normal(size=n) for name in set(bits)}
        rho = np.array([CORRELATION.get(name, 1.0) for name in bits])[:, None]
        own = np.sqrt(1 - ALIKE) * rng.normal(size=(len(bits), n))
        added = np.sqrt(ALIKE) * np.stack([shared[name] for name in bits]) + own
        # A fine-tuned network is another one, in float, too.
        rho = np.where(self.table.variant.str.startswith("finetuned").to_numpy()[:, None], 0.98 * rho, rho)
        values = rho * latent + np.sqrt(1 - rho**2) * added
        return values < norm.ppf(self.table.accuracy.to_numpy())[:, None]

    def measured(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """The table that `laq advise` would make of n choosing images."""
        right = self.answers(n, rng)
        bits = self.table.bits.map(lambda name: 1 - CORRELATION.get(name, 1.0)).to_numpy()
        return self.table.assign(
            n=n,
            correct=right.sum(1),
            lost=(right[0] & ~right).sum(1),
            gained=(right & ~right[0]).sum(1),
            training_kl_nats=bits * np.exp(RANKING_NOISE * rng.normal(size=len(bits))),
        )


def truths() -> Iterator[Truth]:
    """The candidates of each published subset of 10 classes."""
    table = read_measurements(TABLE)
    wanted = (table.subset_size_classes == 10) & table.calibration.isin(["subset", "none"])
    for _, rows in table[wanted].groupby("subset"):
        first = rows.assign(last=rows.variant != "original").sort_values("last", kind="stable")
        yield Truth(
            first.assign(accuracy=first.top1_sub_percent.clip(0.5, 99.5) / 100).reset_index(drop=True)
        )


def points(promise: str, truth: Truth, rng: np.random.Generator) -> float:
    """The points of a promise; one that is just not kept is a little less than what a candidate loses."""
    if promise != PROMISES[2]:
        return float(promise.partition(" ")[0])
    table = truth.table
    lost = 100 * (table.accuracy[0] - table.accuracy[table.method != "float"])
    return float(rng.choice(lost[(lost > 0.25) & (lost < 5)])) - 0.01


def by_estimate(truth: Truth, lose: float, n: int, rng: np.random.Generator) -> Row | None:
    """The former rule: the smallest network whose estimate on all n images is good enough."""
    return chosen_by_estimates(judged(truth.measured(n, rng), Wanted(lose)))


def by_bound(truth: Truth, lose: float, n: int, rng: np.random.Generator, *, share: float) -> Row | None:
    """The rule of `laq advise`, of whose n images a ``share`` chooses."""
    table = judged(truth.measured(round(share * n), rng), Wanted(lose))
    return next(iter(table[table.chosen].to_dict("records")), None)


RULES: Final[dict[str, Callable[..., Row | None]]] = {
    "estimate, all n": by_estimate,
    "bound, half of n": partial(by_bound, share=0.5),
    "bound, all n (validation images)": partial(by_bound, share=1.0),
}


def trial(truth: Truth, promise: str, n: int, seed: list[int]) -> Iterator[dict[str, Any]]:
    """What each rule chooses of the same truth, and whether that keeps the promise."""
    lose, usual = points(promise, truth, np.random.default_rng(seed)), np.nan
    for rule, choose in RULES.items():
        rng = np.random.default_rng([*seed, 1])
        row = choose(truth, lose, n, rng)
        found: dict[str, Any] = {"promise": promise, "images n": n, "rule": rule, "made": row is not None}
        if row is not None:
            at = int(np.flatnonzero(truth.table.cell == row["cell"])[0])
            fresh = truth.answers(n, rng)
            accuracy = truth.table.accuracy
            found["broken"] = bool(100 * (accuracy[0] - accuracy[at]) > lose + 1e-9)
            found["shown"] = bool(100 * (fresh[0].mean() - fresh[at].mean()) > lose + 1e-9)
            usual = usual if rule != next(iter(RULES)) else row["size_bytes"]
            found["more"] = (row["size_bytes"] - usual) / 1024
        yield found


@click.command()
@click.option("--draws", default=20, show_default=True, help="How often each subset's images are drawn.")
def main(draws: int) -> None:
    """Print the table of broken promises as Markdown."""
    subsets = list(truths())
    order = [
        (truth, promise, n, [number, draw, n, kind])
        for number, truth in enumerate(subsets)
        for draw in range(draws)
        for n in IMAGES
        for kind, promise in enumerate(PROMISES)
    ]
    found = pd.DataFrame([row for each in progress(order, "advise") for row in trial(*each)])
    grouped = found.fillna({"broken": False, "shown": False}).groupby(
        ["promise", "images n", "rule"], sort=False
    )
    means = grouped[["made", "broken", "shown"]].mean().astype(float)
    shown = pd.DataFrame(
        {
            "a promise is made": (100 * means.made).map("{:.0f} %".format),
            "truly broken": (100 * means.broken).map("{:.1f} %".format),
            "fresh images show more lost": (100 * means.shown).map("{:.1f} %".format),
            "KiB more than by estimate": grouped.more.mean().map(lambda kib: number(kib, ".0f")),
        }
    ).reset_index()
    code = commit()
    dirty = " with uncommitted changes" if code["dirty"] else ""
    sys.stdout.write(
        _TEXT.format(
            draws=draws,
            commit=f"{str(code['commit'])[:9]}{dirty}",
            subsets=len(subsets),
            choices=draws * len(subsets),
            how=str(__doc__).strip().rsplit("\n\n", 1)[1],
            table=markdown_table(shown),
        )
    )


if __name__ == "__main__":
    main()
