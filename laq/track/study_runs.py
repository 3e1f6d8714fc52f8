"""Results as the tree of runs that they make: the root, its subsets, and their cells (method x bits)."""

import getpass
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from laq.files import digest
from laq.params import Params
from laq.report import subset_picture
from laq.report.tables import BASE_OF
from laq.sections.study import Grid, bits_name
from laq.study.outcomes import OUTCOMES
from laq.study.tables import CHOOSING, REPORTING
from laq.subsets.subset import Subset
from laq.track.descriptions import cell_description, subset_description
from laq.track.results import Results, Row
from laq.track.runs import ModelSpec, ResultRuns, RunSpec

# What a cell's run shows of each of its variants.
_MEASURED: Final = (
    "top1_all_percent",
    "top1_sub_percent",
    "top5_all_percent",
    "top5_sub_percent",
    "balanced_top1_all_percent",
    "balanced_top1_sub_percent",
    CHOOSING,
    REPORTING,
    "drop_all_points",
    *OUTCOMES,
    "mean_bits",
    "size_bytes",
    "compression",
    "sparsity_percent",
    "relative_error_mean",
    "relative_error_logits",
    "seconds",
)
# Models are ranked by CHOOSING, and REPORTING tells how well the chosen one does.
_OF_MODELS: Final = ("top1_sub_percent", "top1_all_percent", CHOOSING, REPORTING, "size_bytes")
_LONGEST_PARAM: Final = 6000  # characters that MLflow takes
_OF_QUANTIZED: Final = ("drop_all_points", "mean_bits", "compression")
_PER_LAYER: Final = ("bits", "relative_error", "sparsity_percent")


def settings_of(params: Params) -> dict[str, Any]:
    """The parameters that a result depends on: those of the stages before ``track``."""
    return params.model_dump(
        mode="json", exclude={"name", "track", "quantize", "compare", "advise"}, exclude_none=True
    )


def experiment_name(params: Params) -> str:
    """An experiment for each study: results on different data never stand in one table."""
    return f"laq-{params.name}"


def tags(results: Results) -> dict[str, str]:
    """What places a run: study, data, network, parameters and code."""
    params, provenance = results.params, results.provenance
    return {
        "laq.study": params.name,
        "laq.dataset": provenance.inputs[0].name,
        "laq.network": provenance.design["architecture"],
        "laq.params_sha256": digest(settings_of(params)),
        **provenance.tags,
        # What MLflow's own pages show.
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
        rows, key = results.of(subset), digest([results.key, subset.name])
        picture = results.pictures and results.pictures / subset_picture(subset.name)
        yield RunSpec(
            key=key,
            name=subset.name,
            parent=results.key,
            params=_subset_params(subset),
            metrics={**_overview(rows), **_divergences(subset)},
            tags={**tags(results), "laq.level": "subset"},
            inputs=results.provenance.inputs,
            files=[(picture, "")] if picture else [],
            documents={"subset.json": vars(subset)},
            description=subset_description(subset, rows, results.params.track),
        )
        for recipe in dict.fromkeys(_recipe(row) for row in rows if row["method"] != "float"):
            cell = [row for row in rows if row["method"] == "float" or _recipe(row) == recipe]
            yield _cell_run(results, subset, cell, key)


def _recipe(row: Row) -> tuple[str, str, str, str]:
    """What tells a subset's cells apart: method, bits, calibration and what drew its images."""
    seed: str = "" if pd.isna(row["seed"]) else str(row["seed"])
    return row["method"], str(row["bits"]), row["calibration"], seed


def _cell_run(results: Results, subset: Subset, rows: Sequence[Row], parent: str) -> RunSpec:
    """The run of one method, bit-width and calibration for one subset: all variants of the network."""
    last = rows[-1]
    method, bits, calibration, seed = _recipe(last)
    quantized = [row for row in rows if row["method"] != "float"]
    shown = ("layer", "bits", "levels", "weights", "sparsity_percent", "relative_error")
    layers = {
        row["variant"]: [
            {n: layer[n] for n in shown} for layer in results.layers if layer["cell"] == row["cell"]
        ]
        for row in quantized
    }
    return RunSpec(
        key=digest([parent, *_recipe(last)]),
        name=f"{subset.name}, {method}, {bits} bits" + (f", {calibration}-{seed}" if seed else ""),
        parent=parent,
        params={**_subset_params(subset), **_cell_params(results.params, last)},
        metrics={**_scores(rows), **_divergences(subset)},
        series={
            f"{variant}/layers/{name}": [layer[name] for layer in some]
            for variant, some in layers.items()
            for name in _PER_LAYER
        },
        tags={**tags(results), "laq.level": "cell"},
        inputs=results.provenance.inputs,
        documents={
            "layers.json": layers,
            "bits.json": {v: {row["layer"]: row["bits"] for row in some} for v, some in layers.items()},
        },
        models=[_model(results, subset, row) for row in quantized if row["cell"] in results.weights],
        description=cell_description(subset, rows),
    )


def _cell_params(params: Params, row: Row) -> dict[str, str]:
    """What tells cells apart, and the study's other settings of how networks are quantized."""
    method, bits, calibration, seed = _recipe(row)
    study = params.study.model_dump(mode="json", exclude={*Grid.model_fields, "also"})
    kept = row.get("not_quantized")  # what keeps its weights, and why
    return {
        "method": method,
        "bits": bits,
        "calibration": calibration,
        "calibration_seed": seed,
        "levels": "" if pd.isna(row["levels"]) else str(row["levels"]),
        **({"not_quantized": kept[:_LONGEST_PARAM]} if isinstance(kept, str) else {}),
        "network": row["network"],
        "dataset": row["dataset"],
        **{name: str(value) for name, value in study.items()},
    }


def _subset_params(subset: Subset) -> dict[str, str]:
    return {"subset": subset.name, "kind": subset.kind, "classes": ", ".join(subset.class_names)}


def _scores(rows: Sequence[Row]) -> dict[str, float]:
    """Metrics named ``variant/measure``."""
    return {
        f"{row['variant']}/{name}": row[name]
        for row in rows
        for name in _MEASURED
        if name in row and not pd.isna(row[name])
        if row["method"] != "float" or name not in (*_OF_QUANTIZED, *OUTCOMES)
    }


def _overview(rows: Sequence[Row]) -> dict[str, float]:
    """The subset's restricted top-1 by method and bits, and that of its networks as they are."""
    metrics = {}
    for row in rows:
        method, bits, calibration, seed = _recipe(row)
        recipe = f"/{method}-{bits_name(bits)}" + (f".{calibration}-{seed}" if seed else "")
        name = f"top1_sub/{row['variant']}" + ("" if method == "float" else recipe)
        metrics[name] = row["top1_sub_percent"]
    return metrics


def _divergences(subset: Subset) -> dict[str, float]:
    return {f"divergence/{name}": v for name, v in vars(subset).items() if name.endswith("_divergence")}


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
        metrics={name: row[name] for name in _OF_MODELS if not pd.isna(row.get(name))},
    )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested names joined by dots, with their values."""
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
