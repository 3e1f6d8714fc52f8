"""Measures the speed of the quantization engine, beside Brevitas, the textbook and the machine's peak.

`make bench` builds `.venv-bench` and runs both commands. By hand, in the project's folder::

    .venv-bench/bin/python benchmarks/speed.py run --cases resnet20 --images 16 --repeats 1
    .venv-bench/bin/python benchmarks/speed.py table

Every measurement runs in a process of its own, one after another, and goes to a file as soon as it is made,
so that a killed benchmark continues where it stopped. Measurements of `laq` are repeated when the engine's
code has changed, those of others only with --fresh; use --fresh for ratios to be published. By default only
`laq` quantizes ResNet-50, since the others take long; --contenders includes them.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
from records import Record, read_records
from speed_plan import CASES, CONTENDERS, OURS, ROOT, Job, Setting, plan

from laq.files import read_json, replacing_file
from laq.imports import code_digest
from laq.progress import progress

_RESULTS: Final = ROOT / "benchmarks" / "results" / "speed.jsonl"
_results = click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_RESULTS,
    help="The file of records, JSON lines.  [default: benchmarks/results/speed.jsonl]",
)


@click.group()
def main() -> None:
    """Measure the engine's speed, and print it."""


@main.command()
@click.option("--cases", type=click.Choice(list(CASES)), multiple=True, help="Default: all.")
@click.option("--contenders", type=click.Choice(CONTENDERS), multiple=True, help="Default: each case's own.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--images", type=click.IntRange(2, 64), help="Calibration images.  [default: each case's own]")
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--fresh", is_flag=True, help="Repeat measurements that have records.")
@_results
def run(results: Path, repeats: int, *, fresh: bool, **chosen: Any) -> None:
    """Take the measurements that are missing."""
    setting = Setting(chosen["bits"], chosen["images"], chosen["device"])
    jobs = list(plan(chosen["cases"] or tuple(CASES), chosen["contenders"], repeats, setting))
    if fresh:
        write_records(results, [r for r in read_records(results) if not any(job.made(r) for job in jobs)])
    records, code = read_records(results), code_digest("laq.quantization")
    # Records of the engine count only if its code is still the same.
    valid = [record for record in records if record["contender"] not in OURS or record["code"] == code]
    missing = [job for job in jobs if not any(job.made(record) for record in valid)]
    failed = [message for message in measure_all(missing, results) if message]
    if failed:
        raise click.ClickException("\n".join([f"{len(failed)} of {len(missing)} failed", *failed]))


@main.command()
@_results
def table(results: Path) -> None:
    """Print the measurements as a Markdown table."""
    # `run` must stay small, without pandas and torch, which this module imports.
    from speed_table import render  # noqa: PLC0415

    records = read_records(results)
    if not records:
        raise click.ClickException(f"{results}: no measurements; `speed.py run` takes them")
    click.echo(render(records))


def measure_all(jobs: Sequence[Job], results: Path) -> list[str]:
    """Run the jobs and keep their records; returns a message for each, empty if it succeeded."""
    messages = []
    with progress(jobs, "bench", unit="job") as bar:
        for job in bar:
            bar.set_postfix_str(f"{job.case} {job.contender} {job.repeat + 1}")
            messages.append(measure(job, results))
    return messages


def measure(job: Job, results: Path) -> str:
    """Run one job in a process of its own and keep its record; returns the error, empty if there is none."""
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "record.json"
        script = ROOT / "benchmarks" / "speed_one.py"
        command = [sys.executable, str(script), json.dumps(asdict(job)), str(out)]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if finished.returncode:
            lines = [line for line in finished.stderr.splitlines() if line.strip()]
            return f"{job.case} {job.contender}: {lines[-1] if lines else finished.returncode}"
        others = [record for record in read_records(results) if not job.made(record)]
        write_records(results, [*others, read_json(out)])
    return ""


def write_records(results: Path, records: Sequence[Record]) -> None:
    """Replace the file by one with these records."""
    with replacing_file(results) as partial:
        partial.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main()
