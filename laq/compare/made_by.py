"""What made two studies, as the records in their runs say: a run that tells otherwise is refused."""

from collections.abc import Iterator, Mapping
from typing import Final

import pandas as pd

from laq.compare.pairing import SIDES, Comparison
from laq.errors import LaqError
from laq.paths import DATASET, NETWORK
from laq.track.find_studies import StageRecord, TrackedStudy
from laq.track.specs_of_results import LONGEST_PARAM, flatten

Records = Mapping[str, StageRecord]  # of a study's stages, by their names
_MADE_BY: Final = {"images": ("dataset", DATASET), "network": ("network", NETWORK)}


def check(study: TrackedStudy, records: Records) -> None:
    """See that the run's parameters and inputs are those that its results were made with.

    Raises:
        LaqError: one is another, so that the run does not tell what it holds the results of.
    """
    for record in records.values():
        for name, value in flatten(record.parameters):
            told = study.params.get(name)
            # A list of keys and values is told without those that are left out.
            if told is not None and "{" not in told and told != str(value)[:LONGEST_PARAM]:
                raise _untrue(study, f"{name} is {told}", f"with {value}")
    for use, (stage, path) in _MADE_BY.items():
        told = study.inputs.get(use)
        made = records[stage].outputs.get(str(path)) if stage in records else None
        if told and made and told != made:
            raise _untrue(study, f"its {use} have the hash {told}", f"from {made}")


def _untrue(study: TrackedStudy, told: str, made: str) -> LaqError:
    return LaqError(
        f"study {study.label}: its run says that {told}, and its results were made {made}; delete the run "
        f"{study.run}, then run `dvc repro`, which sends what is true"
    )


def cautions(pair: Comparison, table: pd.DataFrame, first: Records, second: Records) -> Iterator[str]:
    """What a reader of the comparison must know, a sentence each; ``table`` is that of ``pairing.match``."""
    for side, study, records in zip(SIDES, (pair.first, pair.second), (first, second), strict=True):
        if study.tags.get("laq.dirty") == "True":
            files = study.tags.get("laq.uncommitted", "files")
            yield f"The {side} was made with uncommitted changes of {files}: no commit makes it again."
        if not records:
            yield f"The {side} has no record of what made its results, so that its parameters are unproven."
    ours, theirs = _versions(first), _versions(second)
    shared = [name for name in ours if name in theirs]
    other = [f"{name} {ours[name]} and {theirs[name]}" for name in shared if ours[name] != theirs[name]]
    if other:
        yield f"The studies were made with other versions of packages: {', '.join(other)}."
    if (table.found == "both").all() and not table.difference_points.any():
        yield "All cells have the same accuracy in both: what differs between the studies changes none."


def _versions(records: Records) -> dict[str, str]:
    """The versions of the packages that any stage imported."""
    return {name: version for record in records.values() for name, version in record.versions.items()}
