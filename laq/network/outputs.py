"""Which output of a network from elsewhere stands for which class, and whether images agree with that."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from laq.errors import LaqError
from laq.files import project_root
from laq.quantization.options import nearest_name

Outputs = str | Mapping[str, int | str] | None
_TOLD: Final = 5
_REMEDY: Final = (
    "name them: network.outputs takes the path of a file with the name of each output, one a line, or a map "
    "of classes to outputs"
)


def find_rows(
    outputs: Outputs, classes: Sequence[str], count: int, known: Sequence[str] = ()
) -> tuple[int, ...]:
    """The number of the output of each class.

    Args:
        outputs: the section's ``network.outputs``.
        classes: the names of the dataset's.
        count: how many outputs the network has.
        known: their names, where the network's source tells them.

    Raises:
        LaqError: a class has no output, or two have the same.
    """
    if outputs is None:
        if count == len(classes):
            return tuple(range(count))
        plain = {_plain(name) for name in known}
        if len(known) != count or any(_plain(name) not in plain for name in classes):
            raise LaqError(
                f"network.architecture: {count} outputs for {len(classes)} classes; {_REMEDY}; "
                "or let network.transfer learn a new head"
            )
        return _rows(dict(zip(classes, classes, strict=True)), classes, count, known)
    names = _read_names(outputs, count) if isinstance(outputs, str) else known
    wanted = dict(zip(classes, classes, strict=True)) if isinstance(outputs, str) else outputs
    return _rows(wanted, classes, count, names)


def _read_names(name: str, count: int) -> list[str]:
    """The names of all outputs in a file: one a line, or a JSON list."""
    path = project_root() / name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LaqError(
            f"network.outputs: no file of names {name!r} (from {project_root()}): {error}"
        ) from error
    try:
        names = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except ValueError as error:
        raise LaqError(f"network.outputs: {name} begins like a JSON list and is none: {error}") from error
    names = [str(each).strip() for each in names if str(each).strip()]
    if len(names) != count:
        raise LaqError(
            f"network.outputs: {name} has {len(names)} names; must have {count}, one for each output"
        )
    return names


def _rows(
    wanted: Mapping[str, int | str], classes: Sequence[str], count: int, names: Sequence[str]
) -> tuple[int, ...]:
    if unknown := [key for key in wanted if key not in classes]:
        hint = nearest_name(unknown[0], list(classes))
        raise LaqError(f"network.outputs: found {unknown[0]!r}, which is no class of the dataset{hint}")
    if missing := [name for name in classes if name not in wanted]:
        raise LaqError(f"network.outputs: {_first(missing)}: missing; must give the output of each class")
    rows = [_row(wanted[name], count, names) for name in classes]
    for number, row in enumerate(rows):
        if row in rows[:number]:
            both = f"{classes[rows.index(row)]} and {classes[number]}"
            raise LaqError(f"network.outputs: found output {row} for {both}; each class has one of its own")
    return tuple(rows)


def _row(output: int | str, count: int, names: Sequence[str]) -> int:
    if isinstance(output, int):
        if output >= count:
            raise LaqError(f"network.outputs: found {output}; must be below {count}, the network's outputs")
        return output
    places = [number for number, name in enumerate(names) if _plain(name) == _plain(output)]
    if len(places) == 1:
        return places[0]
    if not names:
        raise LaqError(
            f"network.outputs: found {output!r}; must be a number: the network's outputs have no names"
        )
    what = f"is the name of outputs {_first(places)}" if places else "is the name of no output"
    raise LaqError(f"network.outputs: {output!r} {what}{nearest_name(output, list(names))}; {_REMEDY}")


def _plain(name: str) -> str:
    """A name without what writers of names differ in."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _first(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:_TOLD])) + (", ..." if len(names) > _TOLD else "")


def check_order(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """See that no other order of the outputs does far better on some images, (n, classes) and (n,).

    Half of the images propose an order, and the others judge it.

    Raises:
        LaqError: outputs seem to stand for other classes than they are taken for.
    """
    guesses = logits.argmax(1)
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % 2 == 0
    counts = torch.zeros(len(classes), len(classes))
    counts.index_put_((labels[chosen], guesses[chosen]), torch.ones(int(chosen.sum())), accumulate=True)
    _, order = linear_sum_assignment(-counts.numpy())
    judged = labels[~chosen], guesses[~chosen]
    n = len(judged[0])
    right = int((judged[0] == judged[1]).sum())
    reordered = int((torch.from_numpy(order)[judged[0]] == judged[1]).sum())
    chance = n / len(classes)
    # Three standard deviations of a count, and no network that works in the order given.
    if right > 2 * chance or reordered < 2 * right or reordered - right < 3 * n**0.5:
        return
    moved = [f"{classes[c]}: {row}" for c, row in enumerate(order.tolist()) if c != row]
    raise LaqError(
        f"network.outputs: {100 * right / n:.1f} % of training images are told right, but "
        f"{100 * reordered / n:.1f} % in another order of outputs ({_first(moved)}): they stand for other "
        f"classes than they are taken for; {_REMEDY}"
    )
