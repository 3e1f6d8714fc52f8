"""The command line: a command per pipeline stage, ``track`` and ``quantize``, and nothing but calls."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from laq.errors import LaqError
from laq.params import METHODS, Method, check_bits, load_params

# Each command imports its own room: importing them all takes seconds that `--help` should not.
# ruff: noqa: PLC0415


class _Commands(click.Group):
    """Tells bad input in one line and exits with code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LaqError as error:
            for line in str(error).splitlines():
                click.echo(f"laq: {line}", err=True)
            ctx.exit(2)


class _Bits(click.ParamType["int | str"]):
    """What study.bits in params.yaml may hold."""

    name = "bits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        try:
            return check_bits(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="laq")
def main() -> None:
    """Label-aware quantization: a command per stage of the pipeline (dvc.yaml, params.yaml)."""


@main.command()
def dataset() -> None:
    """Draw the glyphs, or fetch and verify CIFAR-100."""
    from laq import dataset as room

    room.run(load_params().dataset)


@main.command()
def network() -> None:
    """Train the network, or load its weights; score it."""
    from laq import network as room

    room.run(load_params().network)


@main.command()
def embeddings() -> None:
    """Write the penultimate features of every training image."""
    from laq import embeddings as room

    room.run(load_params().embeddings)


@main.command()
def divergence() -> None:
    """Write the divergence of every pair of classes."""
    from laq import divergence as room

    room.run(load_params().divergence)


@main.command()
def subsets() -> None:
    """Choose the subsets of classes."""
    from laq import subsets as room

    room.run(load_params().subsets)


@main.command()
def finetune() -> None:
    """Fine-tune the network for each subset."""
    from laq import finetune as room

    room.run(load_params().finetune)


@main.command()
def study() -> None:
    """Quantize for every subset, bit-width and method, and measure."""
    from laq import study as room

    room.run(load_params().study)


@main.command()
@click.option(
    "--publish",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Copy the finished report there, with its parameters, hashes and commit.",
)
def report(publish: Path | None) -> None:
    """Write the findings: numbers, tables and pictures."""
    from laq import report as room

    if publish is None:
        room.run(load_params().report)
    else:
        room.publish(publish)


@main.command()
def track() -> None:
    """Send the study's runs to MLflow, each once."""
    from laq import tracking as room

    click.echo(room.run(load_params()))


@main.command()
@click.option("--subset", default="all", show_default=True, help="A subset's name, or all.")
@click.option(
    "--bits",
    type=_Bits(),
    default="4",
    show_default=True,
    help="Bits per weight: 2 to 24, or a text as in params.yaml such as auto:3.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="gpfq",
    show_default=True,
    help="Whose network becomes the run's model.",
)
def quantize(subset: str, bits: int | str, method: Method) -> None:
    """Quantize for one subset or all, measure, and log MLflow runs with the networks."""
    from laq import tracking as room

    for outcome in room.quantize(load_params(), room.Order(subset, bits, method)):
        click.echo(room.describe(outcome))


@main.command()
def pipeline() -> None:
    """Run `dvc repro` with the Python that runs laq."""
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([binaries, os.environ.get("PATH", "")])}
    sys.exit(subprocess.run([sys.executable, "-m", "dvc", "repro"], env=environment, check=False).returncode)
