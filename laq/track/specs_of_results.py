"""Results as the tree of runs that they make: the root, its subsets, and their cells (method x bits)."""

import getpass
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from laq.files import digest
from laq.git import experiment
from laq.params import Params
from laq.provenance import made_from
from laq.report.tables import BASE_OF
from laq.sections.study import Grid
from laq.subsets.subset import Subset
from laq.track.descriptions import cell_description, subset_description
from laq.track.measures import RANKING, curves, floats, scores, shown, summary_of
from laq.track.results import Provenance, Results, Row
from laq.track.run_specs import ModelSpec, ResultRuns, RunSpec

Recipe = tuple[str, str, str, str]  # of a run: method, bits, calibration, and the seed that drew its images
LONGEST_PARAM: Final = 6000  # characters that MLflow takes
_PER_LAYER: Final = ("bits", "relative_error", "sparsity_percent")  # drawn over the layers
_LAYER: Final = ("layer", "bits", "levels", "weights", "sparsity_percent", "relative_error")


def settings_of(params: Params) -> dict[str, Any]:
    """The parameters that a result depends on: those of the stages before ``track``."""
    return params.model_dump(
        mode="json",
        exclude={"name", "track", "quantize", "export", "compare", "advise", "verify"},
        exclude_none=True,
    )


def experiment_name(params: Params) -> str:
    """An experiment for each study: results on different data never stand in one table."""
    return f"laq-{params.name}"


def study_key(params: Params) -> str:
    """The name of the study's result: the hash of its parameters and of all that makes its measurements.

    It is known before anything is measured.
    """
    return digest([params.name, settings_of(params), made_from("study", params.settings)])


def study_name(params: Params, subsets: int, key: str) -> str:
    """Such as glyphs · 9 subsets · 3fa94c, which is the start of its key."""
    return f"{experiment() or params.name} · {subsets} subsets · {key[:6]}"


def study_params(params: Params) -> dict[str, str]:
    """The parameters of a study's run: its settings, by their dotted names."""
    return {name: str(value) for name, value in flatten(settings_of(params))}


def subset_key(root: str, subset: Subset) -> str:
    """The key of a subset's run below a root."""
    return digest([root, subset.name])


def subset_name(subset: Subset) -> str:
    """Such as similar-1 · 10 classes."""
    return f"{subset.name} · {len(subset.classes)} classes"


def cell_key(subset: str, recipe: Recipe) -> str:
    """The key of a run below that of a subset."""
    return digest([subset, *recipe])


def root_tags(provenance: Provenance, level: str) -> dict[str, str]:
    """What places the root of a result: the kind of run, its data, network and code."""
    return {
        "laq.dataset": provenance.inputs[0].name,
        "laq.network": provenance.design["architecture"],
        **provenance.tags,
        **_tags(provenance, level),
    }


def _tags(provenance: Provenance, level: str) -> dict[str, str]:
    """What every run has: its kind, and what MLflow's own pages show."""
    return {
        "laq.level": level,
        "mlflow.source.name": "laq",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": provenance.tags.get("laq.commit", ""),
        "mlflow.user": _user(),
    }


def result_runs(results: Results, root: RunSpec, own_run: str = "") -> ResultRuns:
    """The runs of what was measured: ``root``, and below it those of subsets and cells."""
    runs = [root, *subset_runs(results)]
    return ResultRuns(experiment_name(results.params), runs, own_run, results.params.track.champion_bytes)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        return str(os.getuid())


def subset_runs(results: Results) -> Iterator[RunSpec]:
    """A run per subset under the root, each followed by one per method and bit-width under it."""
    for subset in results.subsets:
        rows, key = results.of(subset), subset_key(results.key, subset)
        summary = summary_of(rows)
        yield RunSpec(
            key=key,
            name=subset_name(subset),
            parent=results.key,
            params=_subset_params(subset),
            metrics={**floats(summary), **_divergence(subset)},
            series=curves(summary),
            tags=_tags(results.provenance, "subset"),
            inputs=results.provenance.inputs,
            documents={"subset.json": vars(subset)},
            description=subset_description(subset, rows, results.params.track),
        )
        for recipe in dict.fromkeys(_recipe(row) for row in rows if row["method"] != "float"):
            cell = [row for row in rows if row["method"] == "float" or _recipe(row) == recipe]
            yield _cell_run(results, subset, cell, key)


def _recipe(row: Row) -> Recipe:
    seed: str = "" if pd.isna(row["seed"]) else str(row["seed"])
    return row["method"], str(row["bits"]), row["calibration"], seed


def _cell_run(results: Results, subset: Subset, rows: Sequence[Row], parent: str) -> RunSpec:
    """The run of one method, bit-width and calibration for one subset: all variants of the network."""
    last = rows[-1]
    quantized = [row for row in rows if row["method"] != "float"]
    layers = {
        row["variant"]: [
            {n: layer[n] for n in _LAYER} for layer in results.layers if layer["cell"] == row["cell"]
        ]
        for row in quantized
    }
    first = layers[quantized[0]["variant"]]
    return RunSpec(
        key=cell_key(parent, _recipe(last)),
        name=_cell_name(results.params, last),
        parent=parent,
        params={**_subset_params(subset), **_cell_params(results.params, last)},
        metrics={**scores(quantized), **_divergence(subset)},
        series={
            f"layers/{name}": {place: layer[name] for place, layer in enumerate(first)}
            for name in _PER_LAYER
            if first
        },
        tags=_tags(results.provenance, "cell"),
        inputs=results.provenance.inputs,
        documents={
            "measurements.json": [_plain(row) for row in rows],
            "layers.json": layers,
            "bits.json": {v: {row["layer"]: row["bits"] for row in some} for v, some in layers.items()},
        },
        models=[_model(results, subset, row) for row in quantized if row["cell"] in results.weights],
        description=cell_description(subset, rows),
    )


def _cell_name(params: Params, row: Row) -> str:
    """Such as similar-1 · gpfq · 3 bit, with the calibration and seed where a study has several."""
    method, bits, calibration, seed = _recipe(row)
    several = any(len(grid.calibrations) * len(grid.seeds) > 1 for grid in params.study.grids)
    asked = f"{bits} bit" if bits.isdigit() else bits
    drawn = [f"{calibration}-{seed}"] if several and seed else []
    return " · ".join([row["subset"], method, asked, *drawn])


def _plain(row: Row) -> dict[str, Any]:
    """What was measured, as JSON holds it."""
    return {name: value for name, value in row.items() if not pd.isna(value)}


def _cell_params(params: Params, row: Row) -> dict[str, str]:
    """What tells cells apart, and the study's other settings of how networks are quantized."""
    method, bits, calibration, seed = _recipe(row)
    study = params.study.model_dump(mode="json", exclude={*Grid.model_fields, "also"})
    kept = row.get("not_quantized")  # what keeps its weights, and why
    gpu = row.get("quantized_on")
    return {
        "method": method,
        "bits": bits,
        "calibration": calibration,
        "calibration_seed": seed,
        "levels": "" if pd.isna(row["levels"]) else str(row["levels"]),
        **({"not_quantized": kept[:LONGEST_PARAM]} if isinstance(kept, str) else {}),
        **({"quantized_on": gpu} if isinstance(gpu, str) else {}),
        "network": row["network"],
        "dataset": row["dataset"],
        **{name: str(value) for name, value in study.items()},
    }


def _subset_params(subset: Subset) -> dict[str, str]:
    return {"subset": subset.name, "kind": subset.kind, "classes": ", ".join(subset.class_names)}


def _divergence(subset: Subset) -> dict[str, float]:
    return {"median_divergence_nats": subset.median_divergence}


def _model(results: Results, subset: Subset, row: Row) -> ModelSpec:
    return ModelSpec(
        name=row["variant"],
        weights=results.weights[row["cell"]],
        design=results.provenance.design,
        classes=dict(zip(subset.classes, subset.class_names, strict=True)),
        examples=results.provenance.examples,
        params={
            "study": results.params.name,
            "subset": subset.name,
            "method": row["method"],
            "bits": str(row["bits"]),
            "from": BASE_OF[row["variant"]],
        },
        metrics=shown(row),
        ranking={name: row[name] for name in RANKING if not pd.isna(row.get(name))},
    )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested names joined by dots, with their values."""
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
