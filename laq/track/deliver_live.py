"""Delivers the runs of a study's cells while it is measured; ``laq track`` later delivers the rest."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from laq.errors import LaqError
from laq.params import Params
from laq.study.cells import Cell, plan
from laq.study.inputs import StudyInputs
from laq.subsets.subset import read_subsets
from laq.track.deliver import deliver
from laq.track.measures import PROGRESS
from laq.track.results import Provenance, Results, measured
from laq.track.run_specs import ResultRuns, RunSpec
from laq.track.specs_of_results import result_runs, root_tags, study_key, study_name, study_params
from laq.track.store import Store
from laq.track.views import links, where_to_look

_EVERY: Final = 5.0  # seconds between two deliveries at least
_REST: Final = 20  # times as long as a delivery took: the processor is the study's
_AGAIN: Final = 60.0  # seconds after the store was away


def follow(params: Params, over: threading.Event, tell: Callable[[str], None]) -> None:
    """Deliver what is measured, until the study is ``over``.

    A store that is away is told once, and asked again every minute. Where the runs appear is told, too.
    """
    following, wait, told = None, 0.0, set[str]()

    def tell_once(kind: str, text: str) -> None:
        if kind not in told:
            told.add(kind)
            tell(text)

    while not over.wait(wait):
        try:
            store, following = Store(), following or Following(params)
            begin, result = time.monotonic(), following.so_far()
            views = links(deliver(store, result).experiment_id)
            tell_once("place", where_to_look(store.uri, views))
            wait = max(_EVERY, _REST * (time.monotonic() - begin))
        except LaqError as error:
            tell_once("error", f"the study goes on without MLflow: {error}")
            wait = _AGAIN


class Following:
    """A study that is being measured.

    Attributes:
        folders: of its cells; each is there once its cell is measured.
    """

    def __init__(self, params: Params) -> None:
        self.params, self.key, self.provenance = params, study_key(params), Provenance()
        self.subsets, inputs = read_subsets(), StudyInputs(params.study)
        self.folders = {cell: inputs.folder(cell) for cell in plan(self.subsets, params.study)}

    def so_far(self) -> ResultRuns:
        """The runs whose networks are all measured, as those in float are."""
        done = {cell: folder for cell, folder in self.folders.items() if folder.exists()}
        waiting = {_run_of(cell) for cell in self.folders if cell not in done}
        waiting |= {_run_of(cell) for cell in self.folders if (cell.subset, "float") in waiting}
        ready = {cell: folder for cell, folder in done.items() if _run_of(cell) not in waiting}
        subsets = list(dict.fromkeys(cell.subset for cell in ready if cell.recipe))
        tables = measured(ready) if ready else ([], [], {})
        results = Results(self.params, self.key, subsets, *tables, provenance=self.provenance)
        root = RunSpec(
            self.key,
            study_name(self.params, len(self.subsets), self.key),
            params=study_params(self.params),
            metrics={PROGRESS: 100 * len(done) / len(self.folders)},
            tags=root_tags(self.provenance, "study"),
        )
        return replace(result_runs(results, root), whole=False)


def _run_of(cell: Cell) -> tuple[object, ...]:
    """What the cells of a run have in common, or those in float, which are shown beside all."""
    recipe = (cell.bits, cell.calibration, cell.seed) if cell.recipe else ()
    return cell.subset, cell.method, *recipe
