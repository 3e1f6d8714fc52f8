"""Command ``status``: what is made of the study, which store its runs go to, and what to do next."""

from collections.abc import Iterator, Sequence

from laq.addresses import outbox, tracking_uri, without_password
from laq.errors import LaqError
from laq.params import Params, study_names
from laq.paths import REPORT
from laq.provenance import Condition, conditions, find_stale
from laq.sections.base import FILE
from laq.study.cells import plan
from laq.study.inputs import StudyInputs
from laq.subsets.subset import read_subsets


def run(params: Params) -> str:
    """The state of the study in ``data/``, in lines of text.

    Raises:
        LaqError: ``dvc.yaml`` or a record in ``data/provenance/`` is damaged.
    """
    found = list(conditions(params.settings))
    return "\n".join([*_study(params), "", *_stages(found, params), "", *_next(found, params)])


def _study(params: Params) -> Iterator[str]:
    others = [name for name in study_names() if name != params.name]
    beside = f"; {FILE} also has {', '.join(others)} (`dvc exp run -S study={others[0]}`)" if others else ""
    yield f"study  {params.name}, on {params.dataset.name}{beside}"
    yield f"store  {without_password(tracking_uri())}"
    waiting = len(list(outbox().glob("*.json")))
    if waiting:
        yield f"       {waiting} results wait to be sent; `laq track` sends them"


def _stages(found: Sequence[Condition], params: Params) -> Iterator[str]:
    width = max(len(condition.stage) for condition in found)
    for condition in found:
        reason = condition.reason
        if condition.stage == "study" and condition.state != "made":
            reason = "; ".join(text for text in (reason, _measured(params)) if text)
        yield f"{condition.stage:<{width}}  {condition.state:<7}  {reason}".rstrip()


def _measured(params: Params) -> str:
    """How many of the study's cells are kept already, where that can be told."""
    try:
        if find_stale(params.settings, "finetune"):
            return ""
        inputs = StudyInputs(params.study)
        cells = plan(read_subsets(), params.study)
        done = sum(inputs.folder(cell).exists() for cell in cells)
    except LaqError:
        return ""
    return f"{done} of {len(cells)} cells are measured"


def _next(found: Sequence[Condition], params: Params) -> Iterator[str]:
    first = next((condition for condition in found if condition.stale), None)
    if first is None:
        example = next(iter(params.subsets.names), "NAME")
        yield f"next   all is made: open {REPORT / 'page.html'}"
        yield "       `laq track` sends to the store what it lacks; `mlflow ui --workers 1` shows it"
        yield f"       `laq advise --subset {example}` finds the smallest network for some classes"
    elif first.stale and first.stale.unseen:
        yield f"next   `dvc repro --force --single-item {first.stage}`, then `dvc repro`"
    else:
        yield f"next   `dvc repro` runs {first.stage} and what comes after it"
