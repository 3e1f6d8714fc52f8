"""Command ``quantize``: measures one method and bit-width for one subset or all, and keeps MLflow runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from laq.addresses import outbox
from laq.errors import LaqError
from laq.files import digest
from laq.parallel import Workers
from laq.params import Params
from laq.quantization.methods.registry import BASELINE
from laq.quantization.options import nearest_name
from laq.report.tables import summarise
from laq.sections.commands import ALL
from laq.study.cells import plan
from laq.study.inputs import StudyInputs
from laq.study.measure import measure_all
from laq.subsets.subset import Subset, read_subsets
from laq.track.descriptions import root_description
from laq.track.measures import curves, floats
from laq.track.results import Results, Row, measured
from laq.track.run_specs import RunSpec
from laq.track.specs_of_results import result_runs, root_tags, settings_of
from laq.track.store import own_run


@dataclass(frozen=True)
class Request:
    """The request: a subset's name or ``all``, the bits, and the method."""

    subset: str
    bits: int | str
    method: str


def run(params: Params, request: Request, workers: Workers = Workers()) -> str:  # noqa: B008 (frozen)
    """Quantize by the method and by round-to-nearest, measure, and store the runs for sending.

    Returns:
        A table with a line per subset, variant of the network and method.

    Raises:
        LaqError: the subset is unknown, or measuring failed.
    """
    subsets = _requested_subsets(request.subset)
    study = params.study.restricted(
        bits=(request.bits,),
        methods=tuple(dict.fromkeys((BASELINE, request.method))),
        calibrations=params.study.calibrations[:1],
        seeds=params.study.seeds[:1],
    )
    results = _measure(params.model_copy(update={"study": study}), subsets, workers)
    runs = result_runs(results, _root(results, request), own_run())
    runs.save(outbox() / f"{results.key}.json")
    return describe(results)


def describe(results: Results) -> str:
    """The results as a table with a line per subset, variant of the network and method.

    Where bits differ by layer, lines below the subset's say which layers have how many.
    """
    by_subset = ((subset, results.of(subset)) for subset in results.subsets)
    return "\n".join(
        line
        for subset, rows in by_subset
        for line in (*_lines(subset, rows), *_bits_by_layer(rows, results.layers))
    )


def _bits_by_layer(rows: Sequence[Row], layers: Sequence[Row]) -> Iterator[str]:
    """A line for each allocation of bits: which networks have it, and the layers of each number of bits."""
    allocations: dict[str, list[str]] = {}
    for row in rows:
        by_bits: dict[int, list[str]] = {}
        for layer in layers:
            if layer["cell"] == row["cell"]:
                by_bits.setdefault(int(layer["bits"]), []).append(layer["layer"])
        if not str(row["bits"]).isdigit():
            told = "; ".join(f"{bits} in {', '.join(names)}" for bits, names in sorted(by_bits.items()))
            network = f"{row['variant']} {row['method']} ({row['mean_bits']:.2f} on average)"
            allocations.setdefault(told, []).append(network)
    for told, networks in allocations.items():
        yield f"  bits by layer, {', '.join(networks)}: {told}"


def _lines(subset: Subset, rows: Sequence[Row]) -> Iterator[str]:
    width, longest = (max(len(str(row[name])) for row in rows) for name in ("bits", "method"))
    yield f"{subset.name}: {', '.join(subset.class_names)}"
    for row in rows:
        sub, every = (_percent(row, side) for side in ("sub", "all"))
        yield (
            f"  {row['variant']:<20} {row['method']:<{longest}} {row['bits']!s:>{width}} bits   top-1 "
            f"{sub} of the subset, {every} of all classes   {row['size_bytes'] / 1024:7.1f} KiB"
        )
    for kept in dict.fromkeys(
        row["not_quantized"] for row in rows if isinstance(row.get("not_quantized"), str)
    ):
        yield f"  not quantized: {kept}"


def _percent(row: Row, side: str) -> str:
    """Top-1 among the subset's classes or all, with the balanced one where that is another."""
    balanced = row.get(f"balanced_top1_{side}_percent")
    beside = "" if balanced is None else f" (balanced {balanced:6.2f} %)"
    return f"{row[f'top1_{side}_percent']:6.2f} %{beside}"


def _requested_subsets(name: str) -> list[Subset]:
    subsets = {subset.name: subset for subset in read_subsets()}
    if name == ALL:
        return list(subsets.values())
    if name not in subsets:
        known = [*subsets, ALL]
        hint = nearest_name(name, known)
        raise LaqError(f"--subset: found {name!r}; must be {', '.join(known)}{hint}")
    return [subsets[name]]


def _measure(params: Params, subsets: Sequence[Subset], workers: Workers) -> Results:
    """Measure every cell and keep each as soon as it is done."""
    done = measure_all(plan(subsets, params.study), StudyInputs(params.study), workers)
    rows, layers, weights = measured(done)
    # What it took is no part of it: the same order measured anew is the same result.
    timeless = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    return Results(params, digest([own_run(), settings_of(params), timeless]), subsets, rows, layers, weights)


def _root(results: Results, request: Request) -> RunSpec:
    """The parent of the subsets' runs."""
    summary = summarise(pd.DataFrame(results.rows))
    title = f"{request.method} at {request.bits} bits for {request.subset}"
    return RunSpec(
        key=results.key,
        name=title,
        params={"subset": request.subset, "bits": str(request.bits), "method": request.method},
        metrics=floats(summary),
        series=curves(summary),
        tags=root_tags(results.provenance, "quantize"),
        inputs=results.provenance.inputs,
        description=root_description(results, summary, title),
    )
