"""Counts how often the report's intervals and p-values are wrong, on simulated studies with a known truth.

Run it in the repository's folder::

    python benchmarks/inference.py run                    # 400 studies of each kind, what is missing of them
    python benchmarks/inference.py run --studies 4000     # as published
    python benchmarks/inference.py table                  # writes results/inference.md and .csv

The subsets, their divergences and their accuracies are those of published studies. Outcomes are drawn: an
effect, a random effect of every class with a share of the variance, and an error of every subset. Methods
that were tried and are not in the report are counted on the same outcomes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pandas as pd
from inference_methods import METHODS, Floats, Simulated, r2_intervals
from jinja2 import Template

from laq.git import commit
from laq.progress import progress
from laq.report.dependence import nearness
from laq.report.divergences import members_of
from laq.report.mixed_model import MixedModel
from laq.report.rendering import markdown_table
from laq.sections.report import Primary, Report
from laq.study.tables import read_measurements
from laq.subsets.subset import read_subsets

_ROOT: Final = Path(__file__).parents[1]
_STUDIES: Final = ("cifar100", "cifar100_seeds")
_SHARES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
# What the report asks, by the columns of the design; a mean for each size is added to all but the mean.
_QUESTIONS: Final = {
    "mean difference": (),
    "divergence": ("near",),
    "accuracy": ("before",),
    "divergence beside accuracy": ("near", "before"),
    "accuracy beside divergence": ("before", "near"),
}
_SEEDS: Final = 3
_SEED_SPREADS: Final = (
    0.0,
    0.2,
    1.0,
)  # between networks that serve all subsets, in standard deviations of a subset
_PARAMS: Final = Report(
    primary=Primary(outcome="top1_sub", bits=2, method="gpfq", scale="points"),
    draws=9999, confidence=0.95, margin_points=0.5, seed=0,
)  # fmt: skip
_results = click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_ROOT / "benchmarks" / "results" / "inference.csv",
    help="The file of counts.  [default: benchmarks/results/inference.csv]",
)


@dataclass(frozen=True)
class Published:
    """The subsets of a published study: their classes, and what is known of them before quantization."""

    name: str

    @cached_property
    def members(self) -> Floats:
        """Which classes (columns) the subsets have (n, C)."""
        subsets = read_subsets(_ROOT / "results" / self.name / "subsets.json", remedy="publish it again")
        return np.asarray(members_of(subsets))

    @cached_property
    def about(self) -> pd.DataFrame:
        """A row per subset: ``near``, ``before`` (points of accuracy / 10), and the number of classes."""
        folder = _ROOT / "results" / self.name
        subsets = read_subsets(folder / "subsets.json", remedy="publish it again")
        table = read_measurements(folder / "measurements.csv.gz", "publish it again")
        rows = table[table.variant == "original"].set_index("subset").loc[[s.name for s in subsets]]
        near, before = nearness(rows.median_divergence_nats), -rows.top1_sub_percent / 10
        return pd.DataFrame(
            {"near": near, "before": before, "size": rows.subset_size_classes, "kind": rows.kind}
        )

    def model(self, question: str) -> MixedModel:
        """The report's model of a question."""
        columns = [self.about[name] for name in _QUESTIONS[question]]
        sizes = [self.about["size"] == size for size in sorted(set(self.about["size"]))]
        design = [*columns, *sizes] if columns else [np.ones(len(self.about))]
        return MixedModel(np.column_stack(design).astype(np.float64), self.members, _PARAMS)

    def drawn(self, share: float, count: int, rng: np.random.Generator, of: str = "classes") -> Floats:
        """Outcomes (count, n) about 0 of variance 1 on average, a ``share`` of it random effects of classes.

        ``of`` names other truths than the model's: errors as large as test images make them, whose variance
        is inversely proportional to the number of classes; or random effects of pairs of classes.
        """
        part = self.members / self.members.sum(1, keepdims=True)
        if of == "pairs":
            first, second = np.triu_indices(part.shape[1], 1)
            part = self.members[:, first] * self.members[:, second]
            part = part / part.sum(1, keepdims=True)
        effects = rng.normal(size=(count, part.shape[1])) @ part.T / np.sqrt((part**2).sum(1).mean())
        spread = 1 / self.about["size"] if of == "images" else pd.Series(1.0, self.about.index)
        errors = rng.normal(size=(count, len(part))) * np.sqrt(spread / spread.mean()).to_numpy()
        return np.asarray(np.sqrt(share) * effects + np.sqrt(1 - share) * errors)


@click.group()
def main() -> None:
    """Count how often the report's intervals and p-values are wrong."""


@main.command()
@click.option(
    "--studies", default=400, show_default=True, type=click.IntRange(20), help="Simulated, of each kind."
)
@_results
def run(studies: int, results: Path) -> None:
    """Simulate what is missing; what was counted before stays."""
    done = pd.read_csv(results) if results.exists() else pd.DataFrame(columns=["kind", "studies"])
    known = set(done[done.studies == studies].kind)
    results.parent.mkdir(parents=True, exist_ok=True)
    for number, (kind, count) in enumerate(progress(list(_kinds()), "kinds")):
        if kind not in known:
            rng = np.random.default_rng([_PARAMS.seed, number])
            rows = pd.DataFrame([{"kind": kind, **row, "studies": studies} for row in count(studies, rng)])
            rows.to_csv(results, mode="a", header=not results.exists(), index=False)


_Count = Callable[[int, np.random.Generator], Iterator[dict[str, Any]]]


def _kinds() -> Iterator[tuple[str, _Count]]:
    """The kinds of simulated studies: a name, and what counts errors in some of them."""
    for name in _STUDIES:
        study = Published(name)
        for question in _QUESTIONS:
            for share in _SHARES:
                yield f"{name}, {question}, {share:g}", _counter(study, question, share)
            for of in ("images", "pairs"):
                yield f"{name}, {question}, {of}", _counter(study, question, 0.5, of)
        for share in _SHARES:
            yield f"{name}, seeds, {share:g}", _seed_counter(study, share)
    for name, share in product(_STUDIES, _SHARES):
        yield f"{name}, R², {share:g}", _r2_counter(Published(name), share)


def _counter(study: Published, question: str, share: float, of: str = "classes") -> _Count:
    def count(studies: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        model, noise = study.model(question), study.drawn(share, studies, rng, of)
        about = {"study": study.name, "question": question, "share": share, "truth": of}
        found = model.estimate(noise)
        yield about | _row("p-value, no effect", found.p_value <= 0.05)
        yield about | _row("interval, no effect", (found.low > 0) | (found.high < 0))
        effect = 5 * np.sqrt(model.effect_variances[-1])
        found = model.estimate(noise + effect * model.design[:, 0])
        yield about | _row("interval, effect", (found.low > effect) | (found.high < effect))
        # Were the effect as large as the margin, it would be called none.
        yield about | _row("called none at the margin", (found.high < effect) & (found.low > -effect))
        if of == "classes":
            about_subsets = study.about.assign(divergence=2.0**-study.about.near)
            simulated = Simulated(model, noise, about_subsets, question, rng)
            for name, wrong in METHODS(simulated):
                yield about | _row(name, wrong, tried=True)

    return count


def _seed_counter(study: Published, share: float) -> _Count:
    """Where one network serves all subsets, and three of them are drawn."""

    def count(studies: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        model = study.model("mean difference")
        for spread in _SEED_SPREADS:
            own = study.drawn(share, studies, rng)[:, None] + 0.3 * rng.normal(
                size=(studies, _SEEDS, len(study.about))
            )
            values = own + spread * rng.normal(size=(studies, _SEEDS, 1))
            found = model.estimate(values.mean(1), list(values))
            about = {
                "study": study.name,
                "question": f"mean, seeds ± {spread:g}",
                "share": share,
                "truth": "classes",
            }
            yield about | _row("interval, no effect", (found.low > 0) | (found.high < 0))
            yield about | _row("p-value, no effect", found.p_value <= 0.05)
            one = model.estimate(values.mean(1))
            yield about | _row("the same without the seeds' variance", one.p_value <= 0.05, tried=True)

    return count


def _r2_counter(study: Published, share: float) -> _Count:
    """Intervals for R², where the divergence has the effect that makes a third of the variance."""

    def count(studies: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        model = study.model("divergence")
        near = model.design[:, 0] / model.design[:, 0].std() / np.sqrt(2)
        outcomes = study.drawn(share, studies, rng) + near
        sizes = study.about["size"].to_numpy(dtype=np.float64)
        about = {"study": study.name, "question": "R² of the divergence", "share": share, "truth": "classes"}
        for name, missed in r2_intervals(model, outcomes, sizes, rng):
            yield about | _row(name, missed, tried=True)

    return count


def _row(measure: str, wrong: Sequence[bool] | Any, *, tried: bool = False) -> dict[str, Any]:
    return {"measure": measure, "wrong": int(np.sum(wrong)), "tried": tried}


@main.command()
@_results
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    default=_ROOT / "results",
    help="Folder of the tables.",
)
def table(results: Path, to: Path) -> None:
    """Write the tables of what was counted with most studies."""
    counts = pd.read_csv(results)
    counts = counts[counts.studies == counts.studies.max()].assign(
        percent=lambda t: 100 * t.wrong / t.studies
    )
    kept, tried = counts[~counts.tried], counts[counts.tried]
    within = kept[(kept.truth == "classes") & ~kept.measure.str.startswith("called")]
    named = kept[kept.measure.str.startswith("called") & (kept.truth == "classes")]
    text = Template((Path(__file__).parent / "inference.md").read_text(encoding="utf-8"))
    filled = text.render(
        studies=int(counts.studies.iloc[0]),
        commit=commit()["commit"],
        lowest=within.percent.min(),
        highest=within.percent.max(),
        above=int((within.percent > 7).sum()),
        outside=len(within[~within.percent.between(3, 7)]),
        rates=len(within),
        margin=named.percent.max(),
        kept=_wide(within),
        beyond=_wide(
            kept[(kept.truth != "classes") & kept.measure.str.startswith("p-value")], columns="truth"
        ),
        tried=_wide(tried, ["study", "measure", "question"]),
    )
    (to / "inference.md").write_text(filled + "\n", encoding="utf-8")
    counts.drop(columns="kind").to_csv(to / "inference.csv", index=False)


def _wide(
    rows: pd.DataFrame, index: Sequence[str] = ("study", "question", "measure"), columns: str = "share"
) -> str:
    """Percentages, a column for each share of the classes."""
    wide = rows.pivot_table("percent", list(index), columns, sort=False)
    wide.columns = [f"{100 * name:g} %" if columns == "share" else str(name) for name in wide]
    return markdown_table(wide.map(lambda value: "" if pd.isna(value) else f"{value:.1f}").reset_index())


if __name__ == "__main__":
    main()
