"""Command ``compare``: two tracked studies beside each other, what differs and what that did."""

from pathlib import Path

from laq.compare.figures import draw
from laq.compare.pairing import Comparison, match
from laq.compare.text import markdown
from laq.errors import LaqError
from laq.files import replacing_folder
from laq.params import Compare, Params
from laq.track.own_run import annotate
from laq.track.store import Store
from laq.track.studies import TrackedStudies, TrackedStudy
from laq.track.study_runs import experiment_name

FOLDER = Path("data/compare")
TEXT = "compare.md"
TABLE = "compare.csv"
PICTURE = "compare.png"


def run(params: Params, asked: Compare) -> str:
    """Write ``compare.md``, ``compare.csv`` and ``compare.png``; returns the Markdown.

    The run that `mlflow run` started, if it did, gets all of them.

    Raises:
        LaqError: a name means no study or several, or the two are not to be compared.
    """
    store = Store()
    studies = TrackedStudies(store, experiment_name(params))
    pair = Comparison(studies.find(asked.first), studies.find(asked.second))
    _check(pair)
    table = match(studies.cells(pair.first), studies.cells(pair.second))
    text = markdown(pair, table)
    with replacing_folder(FOLDER) as folder:
        (folder / TEXT).write_text(text, encoding="utf-8")
        table.to_csv(folder / TABLE, index=False)
        draw(folder / PICTURE, table, pair)
    tags = {"laq.level": "compare", "laq.first": pair.first.run, "laq.second": pair.second.run}
    annotate(store, text, tags, [FOLDER / name for name in (TEXT, TABLE, PICTURE)])
    return text


def _check(pair: Comparison) -> None:
    """See that a difference between the two would mean something."""
    if pair.first.run == pair.second.run:
        raise LaqError(f"first and second are both the study {pair.first.run}; name two")
    on = [_dataset(study) for study in (pair.first, pair.second)]
    if on[0] != on[1]:
        raise LaqError(
            f"first ({pair.first.label}) is on {on[0]}, second ({pair.second.label}) on {on[1]}: "
            "accuracies on different data are not compared"
        )


def _dataset(study: TrackedStudy) -> str:
    return study.tags.get("laq.dataset", "unknown data")
