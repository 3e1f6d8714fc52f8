"""How many images a dataset has of its classes, and whether that is enough for a study."""

from collections.abc import Sequence
from typing import Final

from laq.dataset.layout import Manifest
from laq.dataset.registry import Needs
from laq.errors import LaqError

_MOST_NAMED: Final = 5


def check_counts(manifest: Manifest, names: Sequence[str], needs: Needs) -> None:
    """See that there are enough classes, and images of each.

    Raises:
        LaqError: there are not; the line names the classes and the number that each needs.
    """
    train, test = (manifest.images.get(split, [0] * len(names)) for split in ("train", "test"))
    classes, asking = needs.classes
    if len(names) < classes:
        raise LaqError(f"dataset: found {len(names)} classes; {asking} needs {classes}")
    least, why = needs.train
    for counts, split, need, reason in ((train, "training", least, why), (test, "test", 1, "its accuracy")):
        if few := {name: n for name, n in zip(names, counts, strict=True) if n < need}:
            raise LaqError(
                f"dataset: found too few {split} images of {_listed(few)}; each class needs {need} for "
                f"{reason}"
            )
    fewest = dict(sorted(zip(names, train, strict=True), key=lambda pair: pair[1])[: needs.subset])
    images, key = needs.calibration
    if (found := sum(fewest.values())) < images:
        raise LaqError(
            f"dataset: found {found} training images of {_listed(fewest)}; a subset of {needs.subset} "
            f"classes needs {images} for {key}"
        )


def _listed(counts: dict[str, int]) -> str:
    """Classes with their numbers of images, the first five by name."""
    named = [f"{name!r} ({n})" for name, n in list(counts.items())[:_MOST_NAMED]]
    more = len(counts) - len(named)
    return ", ".join(named) + (f" and {more} more classes" if more else "")


def describe(manifest: Manifest) -> str:
    """What the dataset holds, in lines."""
    splits = [
        f"{split} {sum(counts)} ({min(counts)} to {max(counts)} of a class)"
        for split, counts in manifest.images.items()
    ]
    size, classes = manifest.preprocessing.size, len(manifest.images["train"])
    lines = [f"{classes} classes, images of {size} x {size} pixels: {', '.join(splits)}"]
    if skipped := manifest.source.get("skipped"):
        named = "; ".join(skipped[:_MOST_NAMED])
        more = f"; and {len(skipped) - _MOST_NAMED} more" if len(skipped) > _MOST_NAMED else ""
        lines.append(f"skipped {len(skipped)} files that are no whole pictures: {named}{more}")
    if copies := manifest.source.get("copies_left_out"):
        lines.append(f"left out {copies} copies of pictures that are in another split")
    return "\n".join(lines)
