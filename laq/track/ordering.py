"""Command ``quantize``: one method and bit-width for one subset or all, scored, sent and kept as models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from laq.errors import LaqError
from laq.files import digest
from laq.network import WEIGHTS
from laq.parallel import Workers
from laq.params import Method, Params
from laq.report import headline
from laq.report.statistics import summarise, with_drops
from laq.study import Bench, layer_rows, measure_all, measurement_row, plan, read_seconds
from laq.subsets import Subset, read_subsets
from laq.track.connection import OWN_RUN
from laq.track.notes import root_note
from laq.track.outbox import Outbox
from laq.track.record import Record
from laq.track.records import (
    check_dataset,
    settings_of,
    tags,
    tree_of,
)
from laq.track.results import Results, Row, row_dicts

ALL = "all"


@dataclass(frozen=True)
class Order:
    """What to quantize for (a subset's name, or ``all``), how far, and by which method."""

    subset: str
    bits: int | str
    method: Method


def quantize(params: Params, order: Order, workers: Workers = Workers()) -> Results:  # noqa: B008 (frozen)
    """Quantize, score beside round-to-nearest, and keep the runs that it makes in the outbox.

    Raises:
        LaqError: the subset is unknown, or an earlier stage's output is missing or another study's.
    """
    check_dataset(params)
    subsets = _chosen(order.subset)
    methods = tuple(dict.fromkeys(("rtn", order.method)))
    study = params.study.restricted(
        bits=(order.bits,),
        methods=methods,
        calibrations=params.study.calibrations[:1],
        seeds=params.study.seeds[:1],
    )
    results = _measure(params.model_copy(update={"study": study}), subsets, workers)
    Outbox().put(tree_of(results, _root(results, order), OWN_RUN))
    return results


def describe(results: Results) -> str:
    """The outcome as a small table: a line per subset, variant and method."""
    return "\n".join(line for subset in results.subsets for line in _lines(subset, results.of(subset)))


def _lines(subset: Subset, rows: Sequence[Row]) -> Iterator[str]:
    width = max(len(str(row["bits"])) for row in rows)
    yield f"{subset.name}: {', '.join(subset.class_names)}"
    for row in rows:
        yield (
            f"  {row['variant']:<20} {row['method']:<7} {row['bits']!s:>{width}} bits   top-1 "
            f"{row['top1_sub_percent']:6.2f} % of the subset, {row['top1_all_percent']:6.2f} % of all "
            f"classes   {row['size_bytes'] / 1024:7.1f} KiB"
        )


def _chosen(name: str) -> list[Subset]:
    subsets = {subset.name: subset for subset in read_subsets()}
    if name == ALL:
        return list(subsets.values())
    if name not in subsets:
        raise LaqError(f"subset {name!r} is unknown; known: {', '.join(subsets)}, {ALL}")
    return [subsets[name]]


def _measure(params: Params, subsets: Sequence[Subset], workers: Workers) -> Results:
    """Every cell of the order, kept as soon as it is done."""
    done = measure_all(plan(subsets, params.study), Bench(params.study), workers)
    table = pd.DataFrame(
        {**measurement_row(cell, folder), "seconds": read_seconds(folder)} for cell, folder in done.items()
    )
    table = table.astype({"levels": "Int64", "seed": "Int64"})
    rows = row_dicts(with_drops(table))
    layers = [row for cell, folder in done.items() for row in layer_rows(cell, folder)]
    weights = {cell.name: folder / WEIGHTS for cell, folder in done.items() if cell.recipe}
    return Results(params, digest([OWN_RUN, settings_of(params), rows]), subsets, rows, layers, weights)


def _root(results: Results, order: Order) -> Record:
    """The run above those of all subsets."""
    summary = summarise(pd.DataFrame(results.rows))
    title = f"{order.method} at {order.bits} bits for {order.subset}"
    return Record(
        key=results.key,
        name=title,
        params={"subset": order.subset, "bits": str(order.bits), "method": order.method},
        metrics={f"top1/{name}": value for name, value in headline(summary).items()},
        tags={**tags(results), "laq.level": "quantize"},
        inputs=results.origin.inputs,
        note=root_note(results, summary, title),
    )
