"""What is lost when processes are killed, race, or find a full disk, a dead server or a wrong clock?

In the project's folder, on Linux; as root, it mounts small disks, too::

    PYTHONPATH=. python benchmarks/reliability.py run
    PYTHONPATH=. python benchmarks/reliability.py run --scenarios 'study killed' --times 5
    PYTHONPATH=. python benchmarks/reliability.py table > results/reliability.md

Every scenario disturbs a tiny study at moments drawn from a seed, runs the command again, and compares all
files of `data/`, of the cache and of the store with those of an undisturbed run. Outcomes go to a file as
soon as they are there: a killed run continues where it stopped.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import pandas as pd
from records import Record, commit_of, read_records
from reliability_ground import Ground
from reliability_scenarios import SCENARIOS

from laq.git import commit
from laq.progress import progress
from laq.report.rendering import markdown_table

_ROOT: Final = Path(__file__).parents[1]
_results = click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_ROOT / "results" / "reliability.jsonl",
    help="The file of records, JSON lines.  [default: results/reliability.jsonl]",
)


@click.group()
def main() -> None:
    """Disturb a tiny study, and show what was lost."""


@main.command()
@click.option("--scenarios", type=click.Choice(list(SCENARIOS)), multiple=True, help="Default: all.")
@click.option("--times", type=click.IntRange(1), help="How often.  [default: each scenario's own]")
@click.option("--fresh", is_flag=True, help="Play again what has been.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=_ROOT / "benchmarks" / "results" / "reliability",
    help="Where the tiny projects lie.  [default: benchmarks/results/reliability]",
)
@_results
def run(results: Path, work: Path, times: int | None, *, fresh: bool, scenarios: Sequence[str]) -> None:
    """Play what is missing."""
    chosen = [name for name in scenarios or SCENARIOS if not SCENARIOS[name].missing]
    known = set() if fresh else {(r["scenario"], r["seed"]) for r in read_records(results)}
    wanted = [(name, seed) for name in chosen for seed in range(times or SCENARIOS[name].times)]
    missing = [one for one in wanted if one not in known]
    ground = Ground(work.resolve(), _ROOT)
    results.parent.mkdir(parents=True, exist_ok=True)
    with progress(missing, "reliability", unit="time") as bar:
        for name, seed in bar:
            bar.set_postfix_str(f"{name} {seed}")
            record = play(ground, name, seed)
            with results.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")


def play(ground: Ground, name: str, seed: int) -> Record:
    """Play a scenario once; what goes wrong with the scenario itself is a loss, too."""
    begin = time.perf_counter()
    try:
        outcome = vars(SCENARIOS[name].play(ground, random.Random(f"{name} {seed}")))  # noqa: S311
    except Exception as error:  # noqa: BLE001 (told in the table)
        outcome = {"ends": ["not played to its end"], "lost": [f"{type(error).__name__}: {error}"[:1500]]}
    seconds = round(time.perf_counter() - begin, 1)
    return {"scenario": name, "seed": seed, **outcome, "seconds": seconds, **commit()}


@main.command()
@_results
def table(results: Path) -> None:
    """Print the outcomes as Markdown."""
    records = {(r["scenario"], r["seed"]): r for r in read_records(results)}  # the last of each
    if not records:
        raise click.ClickException(f"{results}: no outcomes; `reliability.py run` plays the scenarios")
    click.echo(render(list(records.values())))


def render(records: Sequence[Record]) -> str:
    """The table, and below it what was lost, one by one."""
    rows, lost = [], []
    for name, scenario in SCENARIOS.items():
        played = [record for record in records if record["scenario"] == name]
        ends = Counter(end for record in played for end in record["ends"])
        with_losses = [record for record in played if record["lost"]]
        told = ", ".join(f"{count} × {end}" for end, count in ends.most_common())
        found = f"{len(with_losses)} of {len(played)}" if with_losses else "nothing"
        rows.append(
            {
                "what was done": scenario.done,
                "times": len(played),
                "how the disturbed commands ended": told or scenario.missing or "not played",
                "lost": found if played else "",
                "commit": ", ".join(sorted({commit_of(record) for record in played})),
            }
        )
        lost += [f"- {name}, seed {record['seed']}: {'; '.join(record['lost'])}" for record in with_losses]
    whole = ["# What is lost when things go wrong", _ABOUT, markdown_table(pd.DataFrame(rows))]
    return "\n\n".join([*whole, *(["## Losses", "\n".join(lost)] if lost else [])])


_ABOUT: Final = """\
Measured by `benchmarks/reliability.py`, whose first lines say how. A tiny study (two subsets of three
classes, two networks, two methods) is disturbed at moments drawn from a seed, the command is run again,
and then every file of `data/`, `dvc.lock`, every measured cell and every run, model and artifact in the
store is compared, byte by byte, with those of an undisturbed run (but for ids, times and seconds); files
that are half-written count as lost, too. *One line*: the command said what is wrong in one line and ended
with code 2."""


if __name__ == "__main__":
    main()
