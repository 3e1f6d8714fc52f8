"""Reads the predecessor's logs, and turns them into tables like those of a study."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from laq.errors import LaqError
from laq.study.tables import NO_IMAGES
from laq.subsets.literals import literal

VARIANTS: Final = {
    "original": "Original",
    "quantized": "Quantized",
    "finetuned": "Fine-Tuned",
    "finetuned_quantized": "Quant+FT",
}
_SCORES: Final = {
    f"top{k}_{side}_percent": (k, end) for k in (1, 5) for side, end in (("all", ""), ("sub", " (Pick Sub)"))
}
_DIVERGENCES: Final = {"max": "Max_KL", "min": "Min_KL", "mean": "Avg_KL", "median": "Median_KL"}
_ALWAYS: Final = ["Model Name", "Dataset", "Bits", "Subset_Classes", *_DIVERGENCES.values()]
_LARGEST: Final = np.finfo(np.float64).max
_BETWEEN: Final = ", "  # separates the classes of a subset
_REGULARIZERS: Final = {"L0": "gpfq_l0", "L1": "gpfq_l1"}


def read_rows(path: Path) -> pd.DataFrame:
    """The log's rows, with a column ``classes`` more: the subset's classes in alphabetical order.

    Raises:
        LaqError: the file is missing or is no log of the predecessor's.
    """
    try:
        rows = pd.read_csv(path).map(_plain).infer_objects()
    except FileNotFoundError as error:
        raise LaqError(f"{path}: not found; give a CSV log of the predecessor's") from error
    except (ValueError, IsADirectoryError) as error:
        raise LaqError(f"{path}: not a CSV table ({' '.join(str(error).split())})") from error
    needed = [*_ALWAYS, *(column_of(v, s) for v in ("original", "quantized") for s in _SCORES)]
    if missing := [name for name in needed if name not in rows]:
        raise LaqError(
            f"{path}: has no column {missing[0]}; a log of the predecessor's has {len(needed)} columns"
        )
    if rows.empty:
        raise LaqError(f"{path}: has no rows; give a log with a row for each subset")
    rows = _with_numbers(rows, path)
    return rows.assign(classes=[_classes(text, path) for text in rows.Subset_Classes])


def _plain(cell: Any) -> Any:
    """The value of a cell such as ``np.float64(0.5)``; other cells as they are."""
    with suppress(ValueError):
        return literal(cell) if isinstance(cell, str) and cell.startswith("np.") else cell
    return cell


def _with_numbers(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Refuse accuracies that are no fractions, divergences and bits that are no numbers, and several bits."""
    numbers = {}
    scores = [column_of(v, s) for v in VARIANTS for s in _SCORES if column_of(v, s) in rows]
    for name in [*scores, *_DIVERGENCES.values(), "Bits"]:
        most, allowed = (1.0, "from 0 to 1") if name in scores else (_LARGEST, "of at least 0")
        numbers[name] = pd.to_numeric(rows[name], errors="coerce")
        fits = numbers[name].between(0, most)
        if not fits.all():
            wrong = rows[name][~fits].tolist()[0]
            raise LaqError(f"{path}: {name}: found {wrong!r}; must be a number {allowed}")
    if len(bits := sorted(set(numbers["Bits"]))) > 1:
        raise LaqError(f"{path}: Bits: found {bits}; give a log for each")
    return rows.assign(**numbers)


def _classes(text: Any, path: Path) -> str:
    """The subset's classes in alphabetical order, as one text."""
    try:
        return _BETWEEN.join(sorted(str(name) for name in literal(text)))
    except (ValueError, TypeError) as error:
        raise LaqError(f"{path}: Subset_Classes: found {text!r}; must be a list of names") from error


def log_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a log as a study's table (``laq.study.read_measurements``); what it lacks is empty."""
    names = subset_names(rows)
    numbered = rows.assign(
        subset=[names[classes] for classes in rows.classes],
        seed=rows.groupby("classes").cumcount(),
    )
    table = pd.DataFrame([cell for row in numbered.to_dict("records") for cell in _cells(row)])
    table = table.astype({"levels": "Int64", "seed": "Int64"})
    table["seed"] = table.seed.mask(table.method == "float")
    return table[(table.method != "float") | ~table.duplicated(["subset", "variant"])]


def members_of(rows: pd.DataFrame) -> pd.DataFrame:
    """A table of 1 or 0: which classes (columns) the subsets have (rows, named as by ``log_table``)."""
    names = subset_names(rows)
    found = pd.Series(list(names), index=list(names.values()))
    return found.str.get_dummies(_BETWEEN).astype(np.float64)


def subset_names(rows: pd.DataFrame) -> dict[str, str]:
    """A name for each different subset, by the text of its classes."""
    return {classes: f"log-{number}" for number, classes in enumerate(dict.fromkeys(rows.classes), 1)}


def _cells(row: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """The variants of one logged row, as rows of the study's table."""
    about = {
        "dataset": row["Dataset"],
        "network": row["Model Name"],
        "subset": row["subset"],
        "kind": "log",
        "subset_size_classes": row["classes"].count(_BETWEEN) + 1,
        **{f"{ours}_divergence_nats": row[theirs] for ours, theirs in _DIVERGENCES.items()},
        "relative_error_mean": np.nan,
        "relative_error_logits": np.nan,
        "size_bytes": np.nan,
    }
    for variant, theirs in VARIANTS.items():
        if column_of(variant, "top1_sub_percent") in row:
            floating = variant in {"original", "finetuned"}
            scores = {score: 100 * row[column_of(variant, score)] for score in _SCORES}
            sparsity = 100 * row.get(f"{theirs} Sparsity", np.nan)
            yield {**about, **_key(row, variant, floating=floating), **scores, "sparsity_percent": sparsity}


def _key(row: dict[Any, Any], variant: str, *, floating: bool) -> dict[str, Any]:
    """The columns that identify a cell; the predecessor's alphabet has 2^b + 1 levels."""
    bits = 32 if floating else int(row["Bits"])
    stochastic = row.get("Stochastic Quantization") is True
    method = "sgpfq" if stochastic else _REGULARIZERS.get(str(row.get("Regularizer")), "gpfq")
    return {
        "cell": f"{row['subset']}.{variant}.{row['seed']}",
        "variant": variant,
        "method": "float" if floating else method,
        "bits": str(bits),
        "mean_bits": float(bits),
        "levels": None if floating else 2**bits + 1,
        "calibration": NO_IMAGES if floating else "subset",
        "seed": row["seed"],
    }


def column_of(variant: str, score: str) -> str:
    """The predecessor's name of a column for a score of ours."""
    k, end = _SCORES[score]
    return f"{VARIANTS[variant]} Top{k} Accuracy{end}"
