"""AdaRound: each weight goes down or up, nearly as well as trying them all, and better than to the nearest."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from laq.quantization.alphabet import AlphabetSpec, make_alphabet
from laq.quantization.calibration.covariance import Inputs
from laq.quantization.methods import rtn
from laq.quantization.methods.adaround import solve
from laq.quantization.methods.problem import LayerProblem, Settings
from laq.quantization.methods.soft_rounding import SoftRounding, schedule
from laq.quantization.threads import Pool, worker_pool

KINDS = ("symmetric", "twos_complement", "midrise", "predecessor")
SETTINGS = Settings(options={"iterations": 600})


@pytest.fixture
def pool() -> Iterator[Pool]:
    with worker_pool() as pool:
        yield pool


def layer(neurons: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (1, N, d) and inputs (1, m, d) that go together, as activations do: to learn from, and others."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(1, neurons, d, generator=generator)
    mixing = torch.randn(d, d, generator=generator)
    X, held_out = ((torch.randn(1, 400, d, generator=generator) @ mixing).relu() for _ in "12")
    return W, X, held_out


def error(W: Tensor, Q: Tensor, X: Tensor) -> float:
    return float((X @ (W - Q).mT).square().sum())


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_better_than_the_nearest_levels_on_inputs_that_it_has_not_seen(
    kind: str, bits: int, pool: Pool
) -> None:
    W, X, held_out = layer(20, 24)
    problem = LayerProblem(W, make_alphabet(W, AlphabetSpec(kind, bits)))  # type: ignore[arg-type]
    inputs = Inputs.of_rows(X, X, pool)
    ours, nearest = (found(problem, inputs, SETTINGS) for found in (solve, rtn.solve))
    Q, R = (problem.alphabet.decode(found.codes) for found in (ours, nearest))
    assert error(W, Q, held_out) < 0.8 * error(W, R, held_out)
    assert problem.alphabet.low <= int(ours.codes.min()) <= int(ours.codes.max()) <= problem.alphabet.high
    place = problem.alphabet.in_steps(W) - problem.alphabet.offset
    inside = (place > problem.alphabet.low) & (place < problem.alphabet.high)
    assert ((ours.codes - place).abs() < 1)[inside].all()
    measured = (X @ (W - Q).mT).square().sum(1) - (X @ W.mT).square().sum(1)
    assert torch.allclose(ours.errors().float(), measured, rtol=1e-3, atol=1e-2)


def test_it_finds_nearly_the_best_of_all_roundings(pool: Pool) -> None:
    W, X, _ = layer(8, 7)
    alphabet = make_alphabet(W, AlphabetSpec("symmetric", 3))
    problem, inputs = LayerProblem(W, alphabet), Inputs.of_rows(X, X, pool)
    below = alphabet.in_steps(W).clamp(alphabet.low, alphabet.high).floor().clamp(max=alphabet.high - 1)
    ups = torch.tensor(list(product((0, 1), repeat=7)))
    tried = alphabet.decode(below[0][None] + ups[:, None])  # (128, 8, 7); the step is (1, 8, 1)
    best = (X @ (W - tried).mT).square().sum(1).min(0).values.sum()
    found = error(W, alphabet.decode(solve(problem, inputs, SETTINGS).codes), X)
    nearest = error(W, alphabet.decode(alphabet.encode(W)), X)
    assert best <= found * (1 + 1e-5)
    assert found - best < 0.3 * (nearest - best)


def test_places_begin_where_the_weights_are_and_the_regularizer_starts_late() -> None:
    h = torch.linspace(0, 1, 11)
    assert torch.allclose(SoftRounding.of(SoftRounding.inverse(h)).h, h, atol=1e-5)
    assert list(schedule(10))[:2] == [None, None]
    assert list(schedule(10))[2] == 20
    assert all(a > b > 2 for a, b in zip(list(schedule(10))[2:], list(schedule(10))[3:], strict=False))


def test_weights_of_zero_and_inputs_of_zero_stay_finite(pool: Pool) -> None:
    W, X, _ = layer(4, 6)
    W[0, 0], X[..., 2] = 0, 0
    for kind in KINDS:
        alphabet = make_alphabet(W, AlphabetSpec(kind, 2))  # type: ignore[arg-type]
        found = solve(LayerProblem(W, alphabet), Inputs.of_rows(X, X, pool), SETTINGS)
        assert alphabet.decode(found.codes).isfinite().all()
        assert (alphabet.decode(found.codes)[0, 0] == 0).all() or kind != "midrise"
