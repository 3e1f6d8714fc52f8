"""How well the divergence or the accuracy before quantization predicts what other subsets lose."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pandas as pd

from laq.report.dependence import SCORES, CellBlock, Floats, blocks, divergence_of, nearness
from laq.report.divergences import SubsetDivergences
from laq.report.tables import GROUP

PREDICTOR: Final = "predictor"
MODELS: Final = ("size", "divergence", "accuracy", "both")
COLUMNS: Final = [
    "question", "score", *GROUP, "divergence", "statistic", "n", *(f"r2_{model}" for model in MODELS),
]  # fmt: skip
_MOST: Final = 3  # variables of the largest model


def prediction(table: pd.DataFrame, divergences: SubsetDivergences) -> pd.DataFrame:
    """A row per outcome, cell and divergence, with R² over subsets whose classes the fit has not seen.

    Each subset is predicted by a linear regression on all subsets that share no class with it: on the
        logarithm of the number of classes alone (``r2_size``), and with the logarithm of the divergence, with
        the accuracy before quantization, or with both. R² is 1 minus the squared errors' sum divided by that
        of deviations from the mean of the ``n`` subsets that at least five others share no class with; it is
        negative where the mean predicts better. These numbers describe the study: no interval that was tried
        keeps its rate (``results/inference.md``).
    """
    rows = [
        row
        for score in SCORES[:2]
        if score in table
        for block in blocks(table, score)
        for row in _rows(block, score, divergences)
    ]
    return pd.DataFrame(rows, columns=COLUMNS).round(6)


def _rows(block: CellBlock, score: str, divergences: SubsetDivergences) -> Iterator[dict[str, Any]]:
    names = block.outcomes.index
    members = divergences.members.loc[names].to_numpy()
    disjoint = (members @ members.T) == 0
    known = disjoint.sum(1) >= _MOST + 2
    size, accuracy = np.log2(block.sizes), block.before
    nats = divergences.nats.loc[names]
    outcomes = block.outcomes.to_numpy(dtype=np.float64)
    shared = {"size": [size], "accuracy": [size, accuracy]}
    fixed = {name: _explained(np.column_stack(x), disjoint, known, outcomes) for name, x in shared.items()}
    for place in range(nats.shape[1] if score == SCORES[0] else 1):
        far = nearness(nats.iloc[:, place])
        models = {"divergence": [size, far], "both": [size, far, accuracy]}
        found = fixed | {
            name: _explained(np.column_stack(x), disjoint, known, outcomes) for name, x in models.items()
        }
        for cell, key in enumerate(block.outcomes.columns):
            yield {
                "question": PREDICTOR,
                "score": score,
                **dict(zip(GROUP, key, strict=True)),
                **divergence_of(nats.iloc[:, place]),
                "n": int(known.sum()),
                **{f"r2_{model}": found[model][cell] for model in MODELS},
            }


def _explained(variables: Floats, disjoint: Floats, known: Floats, outcomes: Floats) -> Floats:
    """R² (cells,) of ``known`` subsets' outcomes (subsets, cells), predicted from those ``disjoint``."""
    places = np.flatnonzero(known)
    if len(places) < 3 or not np.isfinite(variables).all():
        return np.full(outcomes.shape[1], np.nan)
    predicted = np.array([_predicted(variables, disjoint[place], int(place), outcomes) for place in places])
    errors = ((outcomes[places] - predicted) ** 2).sum(0)
    spread = ((outcomes[places] - outcomes[places].mean(0)) ** 2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(spread > 0, 1 - errors / spread, np.nan))


def _predicted(variables: Floats, training: Floats, place: int, outcomes: Floats) -> Floats:
    """What a regression on the ``training`` subsets predicts; a constant variable has no slope."""
    middle, mean = variables[training].mean(0), outcomes[training].mean(0)
    slopes = np.linalg.pinv(variables[training] - middle, rcond=1e-10) @ (outcomes[training] - mean)
    return np.asarray(mean + (variables[place] - middle) @ slopes)
