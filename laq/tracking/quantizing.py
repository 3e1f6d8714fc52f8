"""Command ``quantize``: one bit-width for one subset or all, scored, logged and kept as a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from laq.errors import LaqError
from laq.network import WEIGHTS, Classifier
from laq.params import Params
from laq.quantization import Method, QuantizationError, load
from laq.study import Bench, Cell, layer_rows, measurement_row, plan
from laq.subsets import Subset, read_subsets
from laq.tracking.records import Outcome, cell_record, check_dataset, experiment_name
from laq.tracking.store import Record, Store

ALL = "all"


@dataclass(frozen=True)
class Order:
    """What to quantize for (a subset's name, or ``all``), how far, and whose network to keep."""

    subset: str
    bits: int | str
    method: Method


def quantize(params: Params, order: Order) -> list[Outcome]:
    """Quantize, score beside round-to-nearest, and log a run with the quantized network for each subset.

    Raises:
        LaqError: the subset is unknown, or an earlier stage's output is missing.
    """
    check_dataset(params)
    subsets = _chosen(order.subset)
    methods = tuple(dict.fromkeys(("rtn", *params.study.methods, order.method)))
    study = params.study.model_copy(update={"bits": (order.bits,), "methods": methods})
    work = _Work(params.model_copy(update={"study": study}), order)
    if order.subset != ALL:
        return [work.quantize(subsets[0])]
    with work.store.running(work.experiment, work.overview(subsets)) as parent:
        return [work.quantize(subset, parent) for subset in subsets]


def _chosen(name: str) -> list[Subset]:
    subsets = {subset.name: subset for subset in read_subsets()}
    if name == ALL:
        return list(subsets.values())
    if name not in subsets:
        raise LaqError(f"subset {name!r} is unknown; known: {', '.join(subsets)}, {ALL}")
    return [subsets[name]]


class _Work:
    """One order: its parameters, the bench that measures and the store that keeps."""

    def __init__(self, params: Params, order: Order) -> None:
        self.params = params
        self.order = order
        self.bench = Bench(params.study)
        self.store = Store()
        self.experiment = self.store.experiment_of_own_run(experiment_name(params))

    def overview(self, subsets: Sequence[Subset]) -> Record:
        """The run above those of all subsets."""
        settings = {"bits": self.order.bits, "subset": ALL, "method": self.order.method}
        name = f"{len(subsets)} subsets, {self.order.bits} bits"
        return Record(name, settings, {"subsets": len(subsets)}, {"laq.study": self.params.name})

    def quantize(self, subset: Subset, parent: str | None = None) -> Outcome:
        """Measure every variant and method, log the run, and keep one network as its model."""
        cells = plan([subset], self.params.study)
        done = {cell: self.bench.measure(cell) for cell in cells}
        outcome = Outcome(
            subset,
            [measurement_row(*pair) for pair in done.items()],
            [row for pair in done.items() for row in layer_rows(*pair)],
            {cell.name: folder / WEIGHTS for cell, folder in done.items() if cell.recipe},
        )
        record = cell_record(self.params, outcome)
        with self.store.running(self.experiment, record, parent) as run_id:
            self.store.log_network(run_id, self._network(cells, outcome), self.bench.train.images[:2])
        return outcome

    def _network(self, cells: Sequence[Cell], outcome: Outcome) -> Classifier:
        """The quantized original network of the method asked for."""
        kept = next(
            c for c in cells if c.variant == "quantized" and c.recipe and c.recipe.method == self.order.method
        )
        try:
            network = load(outcome.weights[kept.name], self.bench.network(kept))
        except QuantizationError as error:
            raise LaqError(str(error)) from error
        assert isinstance(network, Classifier)
        return network
