"""The command line: a command per stage, and those that use and share results; nothing but calls."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Final

import click

from laq.beside import beside
from laq.errors import LaqError
from laq.files import replacing_file
from laq.git import in_git
from laq.params import Params, load_params, naming
from laq.provenance import (
    FILE,
    chain,
    check,
    check_inputs,
    find_stale,
    is_watched,
    read_stages,
    recording,
)
from laq.quantization.options import ACTIVATION_BITS_OR_MEAN, nearest_name, number, whole_number
from laq.sections.commands import ALL, Compare
from laq.terminal import BitsType, Commands, MethodType, NumberType, show_markdown, show_rows

# Each command imports its own room: importing them all takes seconds that `--help` should not.
# ruff: noqa: PLC0415


_STDERR: Final = 2
_FOLLOW_AFTER: Final = 5.0  # seconds: shorter studies have nothing to show before they are over


_SETTINGS: Final = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    # MLflow's parameters are named with underscores, as in `-P max_kb=60`.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}


@click.group(cls=Commands, context_settings=_SETTINGS)
@click.version_option(package_name="laq")
def main() -> None:
    """Label-aware quantization: quantize CNNs for the classes that you need, and measure what that costs.

    params.yaml says what to study, and `laq status` what is made of it and what to do next.
    """


_jobs = click.option(
    "--jobs",
    type=NumberType(whole_number(1)),
    envvar="LAQ_JOBS",
    help="Processes on this machine.  [default: one per core; env: LAQ_JOBS]",
)


@main.command(
    group="Pipeline",
    reads="the section dataset; of your own pictures, their folder or archive",
    writes="data/dataset",
    example="laq dataset --jobs 2",
)
@_jobs
def dataset(jobs: int | None) -> None:
    """Make images of your pictures or torchvision's, draw the glyphs, or fetch and verify CIFAR-100."""
    from laq import dataset as room

    def run(params: Params) -> None:
        click.echo(room.run(params.dataset, params.needs, jobs))
        if not is_watched(params.settings):
            path = f"${{{params.name}.dataset.path}}"
            click.echo(
                f"laq: to let DVC see changes of these pictures, add {path} to the deps of the stage "
                f"dataset in {FILE}",
                err=True,
            )

    _run_stage("dataset", run)


@main.command(
    group="Pipeline",
    reads="data/dataset; the section network",
    writes="data/network",
    example="laq network",
)
def network() -> None:
    """Train the network, or load its weights; score it."""
    from laq import network as room

    _run_stage("network", lambda params: room.run(params.network))


@main.command(
    group="Pipeline",
    reads="data/dataset, data/network; the section embeddings",
    writes="data/embeddings",
    example="laq embeddings",
)
def embeddings() -> None:
    """Write the penultimate features of every training image."""
    from laq import embeddings as room

    _run_stage("embeddings", lambda params: room.run(params.embeddings))


@main.command(
    group="Pipeline",
    reads="data/embeddings; the section divergence",
    writes="data/divergence",
    example="laq divergence",
)
def divergence() -> None:
    """Write the divergence of every pair of classes."""
    from laq import divergence as room

    _run_stage("divergence", lambda params: room.run(params.divergence))


@main.command(
    group="Pipeline",
    reads="data/divergence; the section subsets",
    writes="data/subsets.json",
    example="laq subsets",
)
def subsets() -> None:
    """Choose the subsets of classes."""
    from laq import subsets as room

    _run_stage("subsets", lambda params: room.run(params.subsets))


def _classes(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say for which classes."""
    named = click.option(
        "--classes", default="", metavar="NAME,NAME,...", help="Classes, by their names or numbers."
    )
    subset = click.option(
        "--subset", default="", metavar="NAME", help="Or else the name of one of the study's subsets."
    )
    return named(subset(command))


def _workers(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say who does the work."""
    scheduler = click.option(
        "--scheduler",
        metavar="ADDRESS",
        default="",
        envvar="LAQ_SCHEDULER",
        help="A Dask scheduler, tcp://HOST:PORT, whose workers do it instead.  [env: LAQ_SCHEDULER]",
    )
    return _jobs(scheduler(command))


@main.command(
    group="Pipeline",
    reads="data/dataset, data/network, data/subsets.json; the section finetune",
    writes="data/finetune",
    example="laq finetune --jobs 4",
)
@_workers
def finetune(jobs: int | None, scheduler: str) -> None:
    """Fine-tune the network for each subset, if the study asks for that."""
    from laq import finetune as room
    from laq.parallel import workers

    def run(params: Params) -> None:
        room.run(params.finetune, workers(jobs, scheduler), wanted=params.study.fine_tunes)

    _run_stage("finetune", run)


@main.command(
    group="Pipeline",
    reads="data/dataset, data/network, data/subsets.json, data/finetune; the section study",
    writes="data/study; runs in MLflow while it measures",
    example="laq study --jobs 4",
)
@_workers
def study(jobs: int | None, scheduler: str) -> None:
    """Quantize for every subset, bit-width and method, and measure."""
    from laq import study as room
    from laq.parallel import workers

    def run(params: Params) -> None:
        with beside(partial(_follow, params), _FOLLOW_AFTER):
            room.run(params.study, workers(jobs, scheduler))

    _run_stage("study", run)


def _follow(params: Params, over: Event) -> None:
    """Send runs while the study is measured: the stage ``track`` sends what is left."""
    from laq.track.deliver_live import follow

    follow(params, over, lambda text: click.echo(f"laq: {text}", err=True))


@main.command(
    group="Pipeline",
    reads="data/dataset, data/study, data/divergence, data/subsets.json; the section report",
    writes="data/report, or a published folder",
    example="laq report --publish results/mine",
)
@click.option(
    "--publish",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Copy the finished report there, with its parameters, hashes and commit.",
)
@click.option(
    "--of",
    "published",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Analyse a published study again, in its folder; what was measured stays.",
)
def report(publish: Path | None, published: Path | None) -> None:
    """Write the findings: numbers, tables and pictures."""
    from laq import report as room

    if publish is not None and published is not None:
        raise LaqError("--of: does not go with --publish; give one of them")
    if published is not None:
        from laq.report.again import analyse_again

        params = load_params(published / "params.yaml")
        analyse_again(published, params.report, params.divergence.name)
    elif publish is None:
        _run_stage("report", lambda params: room.run(params.report))
    else:
        params = load_params()
        check(params.settings, "report")
        room.publish(publish, params.network)


@main.command(
    group="Share",
    reads="logs of the predecessor, a CSV file per bit-width",
    writes="data/predecessor",
    example="laq predecessor logs/*.csv",
)
@click.argument("logs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="LOG.csv...")
def predecessor(logs: tuple[Path, ...]) -> None:
    """Ask the study's questions of logs of the predecessor, LabelAwareQuantization.

    Writes tables and answers into data/predecessor/.
    """
    from laq import predecessor as room

    click.echo(room.run(logs, load_params().report), nl=False)


@main.command(
    group="Pipeline",
    reads="data/dataset, data/network, data/divergence, data/subsets.json, data/study, data/report; "
    ".laq/outbox",
    writes="runs and models in the store that MLFLOW_TRACKING_URI names, or mlflow.db; data/tracked.json",
    example="MLFLOW_TRACKING_URI=http://tracking.example:5000 laq track",
)
def track() -> None:
    """Send the study's runs to MLflow, each once."""
    from laq import track as room

    params = load_params()
    check_inputs("track", params.settings)
    click.echo(room.run(params))


@main.command(
    group="Use",
    reads="data/, which is made first where it is missing; the section quantize",
    writes="runs and models in MLflow",
    example="laq quantize --subset similar-1 --bits auto:3",
)
@click.option("--subset", help="A subset's name, or all.  [default: quantize.subset in params.yaml]")
@click.option(
    "--bits",
    type=BitsType(),
    help="Bits per weight: 2 to 24, or a text as in params.yaml such as auto:3.  "
    "[default: quantize.bits in params.yaml]",
)
@click.option(
    "--method",
    type=MethodType(),
    help="Which method, beside round-to-nearest.  [default: quantize.method in params.yaml]",
)
@_workers
def quantize(
    subset: str | None, bits: int | str | None, method: str | None, jobs: int | None, scheduler: str
) -> None:
    """Quantize for one subset or all, measure, and send MLflow runs with the networks.

    What the pipeline has not made yet, or would make otherwise now, is made first.
    """
    from laq import quantize as room
    from laq import track
    from laq.parallel import workers

    params = load_params()
    usual = params.quantize
    request = room.Request(subset or usual.subset, bits or usual.bits, method or usual.method)
    if wrong := params.subsets.unknown(request.subset, ALL):
        raise LaqError(f"--subset: {wrong}")
    _make("finetune", params)
    click.echo(room.run(params, request, workers(jobs, scheduler)))
    click.echo(track.send_waiting())


@main.command(
    group="Share",
    reads="two studies in MLflow; the section compare",
    writes="data/compare",
    example="laq compare --first previous --second latest",
)
@click.option(
    "--first",
    metavar="STUDY",
    help="A run's id or its laq.key, or the start of either, a DVC experiment's name, latest, or previous.  "
    "[default: compare.first in params.yaml]",
)
@click.option("--second", metavar="STUDY", help="Likewise.  [default: compare.second in params.yaml]")
def compare(first: str | None, second: str | None) -> None:
    """Put two tracked studies beside each other: how they differ, and how their accuracies do."""
    from laq import compare as room

    params = load_params()
    usual = params.compare
    asked = Compare(first=first or usual.first, second=second or usual.second)
    show_markdown(room.run(params, asked))


@main.command(
    group="Use",
    reads="data/, which is made first where it is missing; the section advise",
    writes="data/advise: the network, packed (with --max-ms also as ONNX), and the evidence",
    example="laq advise --subset similar-1 --lose 3",
)
@_classes
@click.option(
    "--max-kb",
    type=NumberType(number(least=0)),
    metavar="KIB",
    help="The largest file, in KiB.  [default: any; 0: any]",
)
@click.option(
    "--max-ms",
    type=NumberType(number(least=0)),
    metavar="MS",
    help="The longest time for a picture, as an ONNX file on one thread of this machine, which is then "
    "written, too.  [default: any; 0: any]",
)
@click.option(
    "--lose",
    type=NumberType(number(least=0, most=100)),
    metavar="POINTS",
    help="How far top-1 among these classes may lie below the original float network's.  "
    "[default: advise.lose in params.yaml]",
)
@click.option(
    "--keep",
    type=NumberType(number(least=0, most=100)),
    metavar="PERCENT",
    help="Or else the least top-1 among them.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Measure the method of the report's primary question alone, on the network as it is.",
)
@_workers
def advise(jobs: int | None, scheduler: str, *, quick: bool, **asked: Any) -> None:
    """Find the smallest network that keeps its accuracy on some classes, and write it with the evidence.

    What the pipeline has not made yet, or would make otherwise now, is made first. Ends with code 2 if no
    candidate will do.
    """
    from laq import advise as room
    from laq.parallel import workers

    params, question = load_params(), room.Question(**asked)
    if question.subset and (wrong := params.subsets.unknown(question.subset)):
        raise LaqError(f"--subset: {wrong}")
    params = room.quick(params) if quick else params
    usual = params.advise
    params = room.for_integers(params) if question.max_ms else params
    _make("subsets" if question.subset else "dataset", params)
    question.subset_of()  # a class that is not there is told before the network is trained
    _make("network", params)
    click.echo(f"laq: {room.describe_plan(params, question.subset_of(), usual)}", err=True)
    advice = room.run(params, question, workers(jobs, scheduler))
    click.echo(advice.text)
    if advice.refusal:
        raise LaqError(advice.refusal)


@main.command(
    group="Use",
    reads="data/, which is made first where it is missing; the section export",
    writes="an ONNX file",
    example="laq export --subset similar-1 --out small.onnx",
)
@_classes
@click.option(
    "--bits",
    type=BitsType(),
    help="Bits per weight: 2 to 24, or a text as in params.yaml such as auto:3.  "
    "[default: export.bits in params.yaml]",
)
@click.option("--method", type=MethodType(), help="Which method.  [default: export.method in params.yaml]")
@click.option(
    "--activations",
    type=NumberType(ACTIVATION_BITS_OR_MEAN),
    metavar="BITS",
    help="Bits of activations: 2 to 8, or a mean such as auto:6.  "
    "[default: export.activations in params.yaml]",
)
@click.option(
    "--storage",
    type=click.Choice(["auto", "int8", "int4"]),
    help="Of weights with 4 bits and fewer: fast or small.  [default: export.storage in params.yaml]",
)
@click.option(
    "--vnni/--no-vnni",
    default=None,
    help="Keep weights of 8 bits, for processors that add products in 32 bits: x86 with VNNI, ARM.  "
    "[default: export.vnni in params.yaml]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("data/export/network.onnx"),
    show_default=True,
    metavar="FILE.onnx",
    help="The file to write.",
)
@click.option(
    "--threads",
    type=NumberType(whole_number(1, 1024)),
    default=1,
    show_default=True,
    help="Of the runtime, for its time.",
)
def export(*, classes: str, subset: str, out: Path, threads: int, **asked: Any) -> None:
    """Write a network for some classes as an ONNX file that onnxruntime computes in integers.

    Says how large, how accurate and how fast it is. What the pipeline has not made yet, or would make
    otherwise now, is made first. `laq run` tells with the file what is on a picture.
    """
    from laq import export as room
    from laq.subsets.asked import asked_subset, check_asked

    params = load_params()
    room.check(out)
    check_asked(classes, subset)
    if subset and (wrong := params.subsets.unknown(subset)):
        raise LaqError(f"--subset: {wrong}")
    given = {name: value for name, value in asked.items() if value is not None}
    _make("subsets" if subset else "dataset", params)
    wanted = asked_subset(classes, subset)
    _make("network", params)
    click.echo(
        f"laq: the network is quantized for {len(wanted.classes)} classes; then it and its file answer their "
        "test images, and the file is timed",
        err=True,
    )
    text = room.run(params, wanted, params.export.model_copy(update=given), out, threads or 1)
    click.echo(text)
    if "MLFLOW_RUN_ID" in os.environ:  # of what `mlflow run` has started, which gets the file
        from laq.track.onnx_models import log_onnx
        from laq.track.store import Store

        store = Store()
        store.annotate(f"```text\n{text}\n```", {"laq.level": "export"}, [out])
        log_onnx(store, out)


@main.command(
    "run",
    group="Use",
    reads="the file that `laq export` wrote, and pictures; no project",
    writes="nothing",
    example="laq run small.onnx photo.jpg",
)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.onnx")
@click.argument("pictures", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="PICTURE...")
@click.option("--json", "as_json", is_flag=True, help="Print the probabilities of all classes as JSON.")
def run_file(file: Path, pictures: tuple[Path, ...], *, as_json: bool) -> None:
    """Say which class each picture is, by an ONNX file that `laq export` wrote."""
    from laq import run as room

    answers = room.OnnxClassifier(file).predict(pictures)
    if as_json:
        named = (
            {"picture": click.format_filename(path), "class": next(iter(p)), "probabilities": p}
            for path, p in answers
        )
        click.echo(json.dumps(list(named), indent=2, ensure_ascii=False))
    else:
        show_rows(("picture", "class", "next", ""), (_row(*answer) for answer in answers))


def _row(picture: Path, probabilities: Mapping[str, float]) -> list[str]:
    """The picture, its class, and the two next classes, with their probabilities."""
    top = list(probabilities.items())[:3]
    return [click.format_filename(picture), *(f"{name} {100 * share:.1f} %" for name, share in top)]


@main.command(
    group="Use",
    reads="data/dataset, data/subsets.json, which are made first where they are missing",
    writes="a picture (PNG) to standard output, or where --out says",
    example="laq sample similar-1 --out picture.png",
)
@click.argument("subset")
@click.option(
    "--number",
    type=NumberType(whole_number(0)),
    default=0,
    show_default=True,
    help="Which of the test images of the subset's classes.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.png", help="The file.")
def sample(subset: str, number: int, out: Path | None) -> None:
    """Write a test image of a subset's classes as a picture, to try a served network with."""
    from laq.subsets.sample import sample_picture

    params = load_params()
    if wrong := params.subsets.unknown(subset):
        raise LaqError(f"SUBSET: {wrong}")
    if out is None and sys.stdout.isatty():
        raise LaqError(f"a terminal shows no picture; run `laq sample {subset} > picture.png`")
    _make("subsets", params)
    name, content = sample_picture(subset, number or 0)
    if out is None:
        click.echo(content, nl=False)
    else:
        with replacing_file(out) as path:
            path.write_bytes(content)
    click.echo(f"laq: test image {number or 0} of {subset} is of the class {name}", err=True)


@main.command(
    group="Use",
    reads="your pictures and the network; params.yaml",
    writes="params.yaml, dvc.yaml",
    example="laq init --images photographs --network efficientnet_lite0 --size 160 --name shop",
)
@click.option(
    "--images",
    "pictures",
    required=True,
    metavar="PATH",
    help="A folder or archive (.zip, .tar) of pictures: train/ and test/ with a folder for each class, or "
    "the classes' folders alone, which are split.",
)
@click.option(
    "--network",
    required=True,
    help="Such as efficientnet_lite0, torchvision:mobilenet_v2, timm:NAME, python:file.py:function or "
    "FILE.pt2; or resnet20, which is trained on the pictures.",
)
@click.option(
    "--size",
    type=NumberType(whole_number(8, 4096)),
    help="Pixels a side of the images.  [default: what the network was trained with]",
)
@click.option("--name", default="own", show_default=True, help="Of the study in params.yaml.")
@click.option("--dry-run", is_flag=True, help="Look, and write nothing.")
def init(*, dry_run: bool, **order: Any) -> None:
    """Look at your pictures and a network, and write a study of them into params.yaml.

    The study becomes the one that runs; other studies and comments stay.
    """
    from laq import init as room

    click.echo(room.run(room.Order(**order), dry_run=dry_run))


@main.command(
    group="Share",
    reads="published folders; the images that they were measured on",
    writes="nothing but the cells that it measures, in .laq",
    example="laq verify results/glyphs",
)
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="FOLDER...")
@click.option("--at-hand", is_flag=True, help="Leave out studies whose images are not on this machine.")
@click.option(
    "--cells",
    type=NumberType(whole_number(0)),
    help="How many cells to draw; 0 for all.  [default: verify.cells in the folder's params.yaml]",
)
@click.option(
    "--seed",
    type=NumberType(whole_number(0, 2**32 - 1)),
    help="What draws them.  [default: verify.seed in the folder's params.yaml]",
)
@_workers
def verify(
    folders: tuple[Path, ...], *, at_hand: bool, cells: int | None, seed: int | None, **workers: Any
) -> None:
    """Measure cells of published studies again, and compare with what was published.

    FOLDER is what `laq report --publish FOLDER` wrote. Ends with code 1 if a cell differs or could not be
    measured, or if a file was changed after it was published.
    """
    from laq import parallel
    from laq import verify as room

    equal = True
    for folder in folders:
        if at_hand and (reason := room.why_not(folder)):
            click.echo(f"{folder}: left out: {reason}")
            continue
        outcome = room.run(folder, cells, seed, parallel.workers(**workers))
        click.echo(outcome.text)
        equal &= outcome.equal
    if not equal:
        sys.exit(1)


@main.command(
    group="Pipeline",
    reads="params.yaml, dvc.yaml",
    writes="data/, and runs in MLflow",
    example="laq pipeline subsets",
)
@click.argument("stage", required=False)
def pipeline(stage: str | None) -> None:
    """Run `dvc repro`, up to STAGE if one is named; the whole of it ends with what `track` does."""
    if stage and stage not in (stages := read_stages()):
        raise LaqError(
            f"STAGE: found {stage!r}; must be {', '.join(stages)}{nearest_name(stage, list(stages))}"
        )
    _repro(*([stage] if stage else []), output=None)
    if stage is None:
        from laq import track as room

        # DVC may have restored results whose runs this store has never seen.
        params = load_params()
        check_inputs("track", params.settings)
        click.echo(room.run(params))


@main.command(
    group="Use",
    reads="params.yaml, dvc.yaml, data/provenance",
    writes="nothing",
    example="laq status",
)
def status() -> None:
    """Say what is made of the study, stale or missing, and what to do next."""
    from laq import status as room

    click.echo(room.run(load_params()))


def _run_stage(name: str, run: Callable[[Params], None]) -> None:
    """Run a stage, and record what made its outputs."""
    params = load_params()
    with recording(name, params.settings), naming(params):
        run(params)


def _make(stage: str, params: Params) -> None:
    """Run the pipeline up to ``stage`` where outputs are missing or stale."""
    study = params.settings
    for _ in range(2 * len(chain(stage))):  # each stage runs once, and once more where it is forced to
        stale = find_stale(study, stage)
        if stale is None:
            return
        _repro(*(("--force", "--single-item", stale.stage) if stale.unseen else (stage,)))
    check(study, stage)


def _repro(*arguments: str, output: int | None = _STDERR) -> None:
    """Run the pipeline with the Python that runs laq; ends the process where it fails.

    What DVC and the stages print is no result of the command that needs them: it goes to standard error. None
    stands for standard output.
    """
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([binaries, os.environ.get("PATH", "")])}
    dvc = [sys.executable, "-m", "dvc"]
    if not in_git() and Path(".dvc").is_dir():
        # A copy of the project without its history; DVC insists on git unless told otherwise.
        subprocess.run([*dvc, "config", "--local", "core.no_scm", "true"], env=environment, check=True)
    command = [*dvc, "repro", *arguments]
    if code := subprocess.run(command, env=environment, stdout=output, check=False).returncode:
        sys.exit(code)
