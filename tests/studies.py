"""Studies made up for the tests: accuracies with what is planted in them, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from laq.sections.report import Primary, Report
from laq.subsets.subset import Subset, describe


def report_params(draws: int = 999) -> Report:
    """The parameters of a report that asks about GPFQ at 2 bits."""
    primary = Primary(outcome="top1_sub", bits=2, method="gpfq", scale="points")
    return Report(primary=primary, draws=draws, confidence=0.95, margin_points=0.5, seed=0)


@dataclass(frozen=True)
class Planted:
    """What is so, in points of restricted top-1; by default nothing."""

    distance: float = 0.0  # of drop, for every nat of median divergence less
    calibration: float = 0.0  # gained by images of the subset
    finetuning: float = 0.0  # gained by fine-tuning first
    gpfq: float = 0.0  # gained on round-to-nearest
    auto: float = 0.0  # gained by bits by layer
    noise: float = 1.0
    seed_noise: float = 0.2


def made_up_matrix(classes: int = 40, seed: int = 0) -> np.ndarray:
    """Squared distances of points in a plane, as of Gaussian classes."""
    points = np.random.default_rng(seed).normal(size=(classes, 2))
    return ((points[:, None] - points[None]) ** 2).sum(-1)


def made_up_subsets(
    count: int, matrix: np.ndarray, sizes: Sequence[int] = (6,), seed: int = 0
) -> list[Subset]:
    rng, names = np.random.default_rng(seed), [f"class-{c}" for c in range(len(matrix))]
    return [
        describe(
            matrix,
            names,
            f"random-{i}",
            "random",
            rng.choice(len(matrix), sizes[i % len(sizes)], replace=False).tolist(),
        )
        for i in range(count)
    ]


def made_up_study(
    subsets: Sequence[Subset], planted: Planted, bits: Sequence[str] = ("2", "4", "auto:2"), seed: int = 0
) -> pd.DataFrame:
    """A table in the form of the study's: two bases, rtn and gpfq, two calibrations, two seeds."""
    rng, rows = np.random.default_rng(seed), []
    for subset in subsets:
        far = subset.median_divergence
        floats = {base: 75 + far + rng.normal() for base in ("original", "finetuned")}
        for base, score in floats.items():
            rows.append(measured_row(subset, (base, "float", "32", "none", None), score))
        for base, b, method in product(floats, bits, ("rtn", "gpfq")):
            lost = 10 - planted.distance * far + rng.normal(scale=planted.noise)
            for used, run in [("none", None)] if method == "rtn" else product(("subset", "all"), (0, 1)):
                gained = planted.finetuning * (base == "finetuned") + planted.gpfq * (method == "gpfq")
                gained += planted.calibration * (used == "subset") + planted.auto * b.startswith("auto")
                score = floats["original"] - lost + gained + rng.normal(scale=planted.noise)
                score += 0 if run is None else rng.normal(scale=planted.seed_noise)
                variant = "quantized" if base == "original" else "finetuned_quantized"
                rows.append(measured_row(subset, (variant, method, b, used, run), score))
    return pd.DataFrame(rows).astype({"levels": "Int64", "seed": "Int64"})


def measured_row(subset: Subset, key: tuple[str, str, str, str, int | None], score: float) -> dict[str, Any]:
    names = ("variant", "method", "bits", "calibration", "seed")
    mean_bits = float(key[2].removeprefix("auto:"))
    return {
        "dataset": "made-up",
        "network": "none",
        "cell": ".".join([subset.name, *map(str, key)]),
        "subset": subset.name,
        **dict(zip(names, key, strict=True)),
        "kind": subset.kind,
        "subset_size_classes": len(subset.classes),
        **{
            f"{s}_divergence_nats": getattr(subset, f"{s}_divergence")
            for s in ("median", "mean", "min", "max")
        },
        **{f"top{k}_{side}_percent": score for k in (1, 5) for side in ("all", "sub")},
        "mean_bits": mean_bits,
        "levels": None if mean_bits == 32 else 2 ** int(mean_bits) - 1,
        "sparsity_percent": 1.0,
        "size_bytes": 1000 * mean_bits,
        "compression": 32 / mean_bits,
        "relative_error_mean": 0.1,
        "relative_error_logits": 0.2,
    }
