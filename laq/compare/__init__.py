"""Command ``compare``: the settings in which two tracked studies differ, and the differences in accuracy."""

from pathlib import Path

from laq.charts.files import write
from laq.compare.figures import chart
from laq.compare.made_by import cautions, check
from laq.compare.pairing import Comparison, match
from laq.compare.text import markdown
from laq.errors import LaqError
from laq.files import replacing_folder
from laq.params import Params
from laq.sections.commands import Compare
from laq.track.find_studies import TrackedStudies
from laq.track.specs_of_results import experiment_name
from laq.track.store import Store

FOLDER = Path("data/compare")
TEXT = "compare.md"
TABLE = "compare.csv"
PICTURE = "compare.png"


def run(params: Params, asked: Compare) -> str:
    """Write ``compare.md``, ``compare.csv`` and ``compare.png``; returns the Markdown.

    If `mlflow run` started this process, its run gets the three files as artifacts.

    Raises:
        LaqError: a name fits no study or several, both names mean the same study, the studies are on
            different datasets, or a run says that its results were made otherwise than their records do.
    """
    store = Store()
    studies = TrackedStudies(store, experiment_name(params))
    pair = Comparison(studies.find(asked.first), studies.find(asked.second))
    if pair.first.run == pair.second.run:
        raise LaqError(f"--first, --second: both name the study {pair.first.run}; name two different studies")
    on = [study.tags.get("laq.dataset", "unknown data") for study in (pair.first, pair.second)]
    if on[0] != on[1]:
        raise LaqError(
            f"--first, --second: {pair.first.label} is a study on {on[0]} and {pair.second.label} one on "
            f"{on[1]}; accuracies can be compared on the same data only; name two studies of one dataset"
        )
    made_by = [studies.records(study) for study in (pair.first, pair.second)]
    for study, records in zip((pair.first, pair.second), made_by, strict=True):
        check(study, records)
    table = match(studies.cells(pair.first), studies.cells(pair.second))
    text = markdown(pair, table, list(cautions(pair, table, *made_by)))
    with replacing_folder(FOLDER) as folder:
        (folder / TEXT).write_text(text, encoding="utf-8")
        table.to_csv(folder / TABLE, index=False)
        write(folder / PICTURE, chart(table, pair))
    tags = {"laq.level": "compare", "laq.first": pair.first.run, "laq.second": pair.second.run}
    store.annotate(text, tags, [FOLDER / name for name in (TEXT, TABLE, PICTURE)])
    return text
