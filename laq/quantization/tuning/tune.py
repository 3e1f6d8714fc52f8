"""Tuning: a quantized network learns from the float one, without labels (Hinton, Vinyals and Dean 2015)."""

import copy
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from laq.quantization.execution.base import in_float32
from laq.quantization.execution.layerwise import run
from laq.quantization.execution.outputs import logits_of
from laq.quantization.recipe import QuantizedNetwork, Tuned
from laq.quantization.threads import Pool
from laq.quantization.tuning.settings import Tuning
from laq.quantization.tuning.student import Student
from laq.quantization.tuning.transfer_set import CHUNK, TransferSet, logits_of_all

_CHECKS: Final = 16  # how often the images that were held back are asked, if they were asked all the time
# They are from this share of the steps on: few images err, and while steps are large what is best there by
# chance is far from what the end would be.
_SETTLED: Final = 0.75


@dataclass(frozen=True)
class TemperedDivergence:
    """How far logits are from the float network's, among the classes that count."""

    classes: Sequence[int] | None
    temperature: float

    def __call__(self, logits: Tensor, reference: Tensor) -> Tensor:
        """T² KL(p ‖ q) in nats, summed over the images: p by ``reference``, q by ``logits``, both (n, c).

        Of logits divided by the temperature T; the factor keeps gradients of one size whatever that is.
        """
        of = slice(None) if self.classes is None else list(self.classes)
        p, q = ((t[:, of] / self.temperature).log_softmax(1) for t in (reference, logits))
        return F.kl_div(q, p, reduction="sum", log_target=True) * self.temperature**2


class Distillation:
    """One network's tuning: it learns step by step, and is judged by the images that were held back."""

    def __init__(
        self, student: Student, transfer: TransferSet, divergence: TemperedDivergence, pool: Pool
    ) -> None:
        self.student = student
        self.transfer = transfer
        self.divergence = divergence
        self.pool = pool

    def judged(self) -> float:
        """The mean divergence (nats) on the images that were held back, of the network as it is."""
        self.student.show()
        split, network = self.transfer.split, self.student.copies[0]
        logits = logits_of_all(network, split.held_back.parts(CHUNK), self.transfer.output, self.pool)
        return self.divergence(logits, self.transfer.held_back).item() / split.held_back.count

    def learn(self, rows: Tensor) -> None:
        """A step of the optimizer, from the images and mixtures of these numbers."""
        now = self.student.show()
        parts = enumerate(rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
        self.pool.run(lambda part: self._backward(*part, len(rows)), parts)
        self.student.step(now)

    def _backward(self, copy: int, rows: Tensor, count: int) -> None:
        """Leave the gradients of a part of ``count`` images with one of the student's copies."""
        with torch.enable_grad():
            logits = logits_of(
                run(self.student.copies[copy], self.transfer.batch(rows)), self.transfer.output
            )
            loss = self.divergence(in_float32(logits), self.transfer.logits[rows]) / count
            torch.autograd.backward([loss])


def tune(result: QuantizedNetwork, transfer: TransferSet, pool: Pool) -> QuantizedNetwork:
    """Tune a quantized network to the float one, if that brings it nearer on the images held back.

    Of these, as of all that is reported, the divergence is that of the tempered probabilities that the
    recipe's tuning compares.
    Errors of layers and outputs stay as they are in ``result``: the caller measures them anew.

    Args:
        result: by a recipe with a tuning; it is left as it is.
        transfer: for that recipe.
        pool: does the work.

    Returns:
        The tuned network, or ``result`` with a warning; either with ``tuned`` filled in.
    """
    tuning, begin = result.recipe.tune, time.perf_counter()
    assert tuning is not None
    student = Student(result, tuning, parts=-(-tuning.batch_size // CHUNK))
    divergence = TemperedDivergence(tuning.compared, tuning.temperature)
    distillation = Distillation(student, transfer, divergence, pool)
    before, after, step = _learned(distillation, tuning, result.recipe.seed)
    tuned = student.quantized(copy.deepcopy(result.network))
    told = Tuned(
        taken=after < before,
        divergence_before=before,
        divergence_after=after if math.isfinite(after) else None,
        codes_moved=student.codes_moved(),
        passes=step * tuning.batch_size / transfer.split.learned.count,
        learned=transfer.split.learned.count,
        held_back=transfer.split.held_back.count,
    )
    if not told.taken:
        warnings.warn(
            f"tune: on the images held back the tuned network is no nearer to the float one ({after:.4g} "
            f"against {before:.4g} nats), so that it is left as {result.recipe.method} made it",
            stacklevel=2,
        )
    kept = tuned if told.taken else result
    return replace(kept, tuned=told, tuning_seconds=time.perf_counter() - begin)


def _learned(distillation: Distillation, tuning: Tuning, seed: int) -> tuple[float, float, int]:
    """Learn, and keep what was best while steps were small.

    Returns:
        The divergence on the images held back before, the best one after, and the step that it was at.
    """
    student, generator = distillation.student, torch.Generator().manual_seed(seed)
    before, best, at, kept = distillation.judged(), math.inf, 0, student.state()
    order = torch.empty(0, dtype=torch.int64)
    pause = max(1, tuning.steps // _CHECKS)
    for step in range(1, tuning.steps + 1):
        if len(order) < tuning.batch_size:
            order = torch.cat([order, torch.randperm(distillation.transfer.count, generator=generator)])
        student.slow_down((1 + math.cos(math.pi * (step - 1) / tuning.steps)) / 2)
        distillation.learn(order[: tuning.batch_size])
        order = order[tuning.batch_size :]
        is_check = step == tuning.steps or (step % pause == 0 and step >= _SETTLED * tuning.steps)
        if is_check and (found := distillation.judged()) < best:
            best, kept, at = found, student.state(), step
    student.restore(kept)
    return before, best, at
