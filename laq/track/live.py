"""Sends the runs of a study's cells while it is measured; ``laq track`` later sends the rest."""

import threading
from collections.abc import Callable, Iterator
from time import time
from typing import Final

from laq.errors import LaqError
from laq.params import Params
from laq.study.cells import Cell, plan
from laq.study.inputs import StudyInputs
from laq.study.tables import NO_IMAGES
from laq.subsets.subset import Subset, read_subsets
from laq.track.measures import PROGRESS
from laq.track.results import Provenance, Results, measured
from laq.track.runs import ResultRuns, RunSpec
from laq.track.store import Store
from laq.track.study_runs import (
    cell_key,
    experiment_name,
    root_tags,
    study_key,
    study_name,
    study_params,
    subset_key,
    subset_name,
    subset_runs,
)
from laq.track.views import links

EVERY: Final = 5.0  # seconds between two looks at what is measured
_AGAIN: Final = 60.0  # after the store was away


def follow(params: Params, over: threading.Event, tell: Callable[[str], None]) -> None:
    """Send what is measured, until the study is ``over``.

    A store that is away is told once, and asked again every minute. Where the runs appear is told, too.
    """
    following, wait, told = None, 0.0, set[str]()

    def tell_once(kind: str, text: str) -> None:
        if kind not in told:
            told.add(kind)
            tell(text)

    while not over.wait(wait):
        try:
            following = following or Following(params)
            tell_once("place", following.place)
            if not following.send(over):
                return
            wait = EVERY
        except LaqError as error:
            tell_once("error", f"the study goes on without MLflow: {error}")
            following, wait = None, _AGAIN


class Following:
    """A study that is being measured, and the sender of what is finished of it.

    Raises:
        LaqError: the store cannot be reached.
    """

    def __init__(self, params: Params) -> None:
        self.params, self.subsets, self.provenance = params, read_subsets(), Provenance()
        inputs, self.key = StudyInputs(params.study), study_key(params)
        self.folders = {cell: inputs.folder(cell) for cell in plan(self.subsets, params.study)}
        self.store = Store()
        self.sender = self.store.sender(ResultRuns(experiment_name(params), list(self._planned())))
        self.place = self.store.where_to_look(links(self.sender.experiment_id))
        self.missing: set[str] = set()
        with self.store.writing():
            self.missing = {spec.key for spec in self.sender.look()}
            if self.key in self.missing:
                self.sender.begin(self.sender.result.root)

    def send(self, over: threading.Event) -> bool:
        """Send the cells that are finished; returns whether the store lacks any of the study's.

        Raises:
            LaqError: the store cannot be reached or written.
        """
        if self.key not in self.missing:
            return False  # the study was sent before, and is measured again
        done = {cell for cell, folder in self.folders.items() if folder.exists()}
        for subset in self.subsets:
            if over.is_set():
                break
            self._send_subset(subset, done, over)
        with self.store.writing():
            percent = 100 * len(done) / len(self.folders)
            run = self.sender.runs[self.key].info.run_id
            self.store.client.log_metric(run, PROGRESS, percent, int(time() * 1000), 0)
        return any(cell not in done for cell in self.folders)

    def _send_subset(self, subset: Subset, done: set[Cell], over: threading.Event) -> None:
        wanted = {key for key, cells in self._networks(subset).items() if done.issuperset(cells)}
        if not wanted & self.missing:
            return
        kept = {c: f for c, f in self.folders.items() if c.subset == subset and c in done}
        results = Results(self.params, self.key, [subset], *measured(kept), provenance=self.provenance)
        for spec in subset_runs(results):
            if over.is_set():
                return
            if spec.key in wanted & self.missing:
                with self.store.writing():
                    self.sender.send_run(spec)
                self.missing.discard(spec.key)

    def _networks(self, subset: Subset) -> dict[str, list[Cell]]:
        """The cells that each run of a subset's shows, by its key: those of one recipe, and in float."""
        own = [cell for cell in self.folders if cell.subset == subset]
        floats = [cell for cell in own if cell.recipe is None]
        found: dict[str, list[Cell]] = {}
        for cell in own:
            if cell.recipe:
                found.setdefault(_key(self.key, cell), [*floats]).append(cell)
        return found

    def _planned(self) -> Iterator[RunSpec]:
        """All runs that the study will have, with what is known of them before."""
        yield RunSpec(
            self.key,
            study_name(self.params, len(self.subsets), self.key),
            params=study_params(self.params),
            tags=root_tags(self.provenance, "study"),
        )
        for subset in self.subsets:
            above = subset_key(self.key, subset)
            yield RunSpec(above, subset_name(subset), self.key)
            yield from (RunSpec(key, "", above) for key in self._networks(subset))


def _key(root: str, cell: Cell) -> str:
    seed = "" if cell.seed is None else str(cell.seed)
    recipe = (cell.method, str(cell.bits), cell.calibration or NO_IMAGES, seed)
    return cell_key(subset_key(root, cell.subset), recipe)
