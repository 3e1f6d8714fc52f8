"""Command ``advise``: finds the smallest network that keeps a given accuracy on given classes."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from laq.advise.candidates import Candidates, describe_plan, for_integers, measure, quick
from laq.advise.choice import Wanted, judged
from laq.advise.export import SubsetExport
from laq.advise.figures import chart
from laq.advise.question import Question
from laq.advise.report import Reported, reported
from laq.advise.text import Findings, answer, for_terminal, markdown
from laq.advise.timing import ONNX, refusal, write_timed
from laq.charts.files import write
from laq.dataset.images import read_manifest
from laq.files import md5, replacing_folder
from laq.git import commit
from laq.network.weights import read_design
from laq.parallel import Workers
from laq.params import Params
from laq.paths import DATASET, NETWORK, WEIGHTS
from laq.subsets.asked import ASKED
from laq.track.store import Store, own_run

__all__ = ["FOLDER", "Advice", "Question", "describe_plan", "for_integers", "quick", "run"]

FOLDER: Final = Path("data/advise")
TEXT: Final = "advice.md"
TABLE: Final = "candidates.csv"
PICTURE: Final = "pareto.png"


@dataclass(frozen=True)
class Advice:
    """The text for a terminal, and one line that says why no network was delivered (empty if one was)."""

    text: str
    refusal: str


def run(params: Params, question: Question, workers: Workers = Workers()) -> Advice:  # noqa: B008 (frozen)
    """Measure all candidates and write ``advice.md``, ``candidates.csv`` and ``pareto.png``.

    If a candidate can be promised to keep the accuracy, the smallest such network is written too:
    ``network.safetensors``, packed and cut to the classes, and ``network.json``; where a time is asked for,
    ``network.onnx`` too, or none of them if that is too slow or cannot be made. If `mlflow run` started this
    process, its run gets all files as artifacts.

    Raises:
        LaqError: a class or subset is unknown, or measuring failed.
    """
    measured = measure(params, question.subset_of(), workers)
    found = _found(measured, question.wanted(params.advise))
    with replacing_folder(FOLDER) as folder:
        timed = write_timed(folder, found, measured, params, question.max_ms)
        if timed and timed.refused:
            found = replace(found, refused=timed.refused)
        else:
            found = replace(found, report=_deliver(folder, found, measured))
        text = markdown(found, _provenance(measured, folder))
        (folder / TEXT).write_text(text, encoding="utf-8")
        found.table.round(6).to_csv(folder / TABLE, index=False)
        write(folder / PICTURE, chart(found))
    if own_run():
        tags = {"laq.level": "advise", "laq.classes": ", ".join(found.subset.class_names)}
        Store().annotate(text, tags, sorted(FOLDER.iterdir()))
    shown = for_terminal(found, str(FOLDER))
    if timed and timed.refused:
        return Advice(shown, refusal(found, timed, params))
    if timed:
        shown += f"\n{FOLDER / ONNX} takes {timed.time}"
    return Advice(shown, "" if found.chosen else answer(found))


def _found(measured: Candidates, wanted: Wanted) -> Findings:
    """Judge the measured candidates by the request."""
    design = read_design()
    return Findings(
        measured.subset,
        judged(measured.table, wanted),
        wanted,
        measured.selection.told,
        (read_manifest(DATASET).name, design.architecture),
        design.classes,
    )


def _deliver(folder: Path, found: Findings, measured: Candidates) -> Reported | None:
    """Write the chosen network, if there is one, and report on its file, on images that did not choose it."""
    row = found.chosen
    if row is None:
        return None
    export, images = SubsetExport(found.subset), measured.selection.report
    export.write(folder / WEIGHTS, measured.folders[row["cell"]] / WEIGHTS)
    report = reported(
        export.right_in_float(images), export.right(folder / WEIGHTS, images), found.wanted.confidence
    )
    about = {
        "cell": row["cell"],
        "confidence": found.wanted.confidence,
        "choosing": {
            name: row[name] for name in ("n", "top1_sub_percent", "lost_points", "lost_high_points")
        },
        "reporting": asdict(report),
    }
    export.write_with_description(folder, measured.folders[row["cell"]] / WEIGHTS, about)
    return report


def _provenance(measured: Candidates, folder: Path) -> dict[str, str]:
    """Names and hashes of the data, the networks and the code that the result was made from."""
    inputs, subset, study = measured.inputs, measured.subset, measured.inputs.params
    tuned, made, code = inputs.finetuned.get(subset.name), folder / WEIGHTS, commit()
    uncommitted = f" with uncommitted changes of {', '.join(code['uncommitted'])}" if code["dirty"] else ""
    told = {
        "classes": ", ".join(subset.class_names),
        "divergence of their pairs": f"median {subset.median_divergence:.2f} nats, "
        f"{subset.min_divergence:.2f} to {subset.max_divergence:.2f}"
        if subset.kind != ASKED
        else "",
        "images": f"{read_manifest(DATASET).name}, MD5 of train {inputs.dataset['train.npy']}, "
        f"of test {inputs.dataset['test.npy']}"
        + (f", of validation {inputs.dataset['validation.npy']}" if inputs.split == "validation" else ""),
        "network": f"{inputs.design['architecture']}, MD5 {md5(NETWORK / WEIGHTS)}",
        "fine-tuned network": f"MD5 {md5(tuned)}" if tuned else "",
        "quantization": f"{study.alphabet} alphabet, a step per {study.granularity}, radius {study.radius}, "
        f"{study.calibration_images} calibration images",
        "commit": f"{code['commit']}{uncommitted}" if code["commit"] else "",
        "code of the measurement": f"SHA-256 {inputs.code}",
        "delivered file": f"MD5 {md5(made)}" if made.exists() else "",
    }
    return {name: value for name, value in told.items() if value}
