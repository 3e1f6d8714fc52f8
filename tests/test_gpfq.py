"""GPFQ against the textbook recursion, and the properties that any alphabet promises."""

import pytest
import torch
from torch import Tensor

from laq.quantization import Alphabet, gpfq, make_alphabet
from laq.quantization.alphabet import AlphabetKind

KINDS: list[AlphabetKind] = ["symmetric", "twos_complement", "predecessor"]


def column_loop(W: Tensor, X: Tensor, X_q: Tensor, alphabet: Alphabet) -> Tensor:
    """The textbook: one column after another, the residual in full. W (N, d), X and X_q (m, d)."""
    u = torch.zeros(W.shape[0], X.shape[0], dtype=W.dtype)
    codes = torch.empty(W.shape, dtype=torch.int64)
    for t in range(W.shape[1]):
        u += W[:, t : t + 1] * X[:, t]
        energy = X_q[:, t].square().sum()
        target = (u @ X_q[:, t] / energy if energy > 0 else W[:, t])[:, None]
        codes[:, t : t + 1] = alphabet.encode(target)
        u -= alphabet.decode(codes[:, t : t + 1]) * X_q[:, t]
    return codes


def problem(N: int, d: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(N, d, generator=generator, dtype=torch.float64)
    X = torch.randn(m, d, generator=generator, dtype=torch.float64).relu()
    return W, X, (X + 0.1 * torch.randn(m, d, generator=generator, dtype=torch.float64)).relu()


def solve(W: Tensor, X: Tensor, X_q: Tensor, alphabet: Alphabet, block: int = 128) -> Tensor:
    return gpfq(W[None], X[None], X_q[None], alphabet.view(1, *W.shape), block)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("N", "d", "m"), [(1, 9, 50), (7, 130, 64), (20, 300, 40), (5, 1, 8)])
def test_blocked_form_equals_the_column_loop(kind: AlphabetKind, N: int, d: int, m: int) -> None:
    W, X, X_q = problem(N, d, m)
    alphabet = make_alphabet(W, kind, 3)
    expected = column_loop(W, X, X_q, alphabet)
    for block in (1, 17, 128):
        assert torch.equal(solve(W, X, X_q, alphabet, block), expected)
    assert expected.min() >= alphabet.low
    assert expected.max() <= alphabet.high


def test_float32_agrees_with_the_column_loop_but_for_ties() -> None:
    W, X, X_q = (t.float() for t in problem(64, 288, 512))
    alphabet = make_alphabet(W, "symmetric", 4)
    fast, slow = solve(W, X, X_q, alphabet), column_loop(W, X, X_q, alphabet)
    assert (fast == slow).double().mean() > 0.99
    errors = [(X @ W.T - X_q @ alphabet.decode(codes).T).norm() for codes in (fast, slow)]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-3, atol=0)


def test_groups_are_quantized_as_if_alone() -> None:
    parts = [problem(6, 18, 40, seed) for seed in range(3)]
    alphabets = [make_alphabet(W, "symmetric", 3) for W, _, _ in parts]
    together = Alphabet(torch.stack([a.step for a in alphabets]), alphabets[0].low, alphabets[0].high)
    codes = gpfq(*(torch.stack(group) for group in zip(*parts, strict=True)), together)
    for g, ((W, X, X_q), alphabet) in enumerate(zip(parts, alphabets, strict=True)):
        assert torch.equal(codes[g], solve(W, X, X_q, alphabet))
    assert codes.shape == (3, 6, 18)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gpfq_errs_less_than_round_to_nearest(bits: int) -> None:
    W, X, X_q = problem(32, 144, 500)
    alphabet = make_alphabet(W, "symmetric", bits, 1.0)
    truth = X @ W.T
    gpfq_error = (truth - X_q @ alphabet.decode(solve(W, X, X_q, alphabet)).T).norm()
    rtn_error = (truth - X_q @ alphabet.decode(alphabet.encode(W)).T).norm()
    assert gpfq_error < rtn_error
    assert gpfq_error > 0


def test_a_fine_alphabet_gives_the_weights_back() -> None:
    W, X, _ = problem(4, 30, 60)
    alphabet = make_alphabet(W, "symmetric", 24, 1.0)
    assert (alphabet.decode(solve(W, X, X, alphabet)) - W).abs().max() <= alphabet.step.max()
    assert (alphabet.decode(alphabet.encode(W)) - W).abs().max() <= alphabet.step.max() / 2


def test_dead_input_columns_take_the_nearest_level() -> None:
    W, X, X_q = problem(3, 12, 20)
    X_q[:, 5] = 0
    alphabet = make_alphabet(W, "symmetric", 4)
    codes = solve(W, X, X_q, alphabet)
    assert torch.equal(codes, column_loop(W, X, X_q, alphabet))
    assert torch.equal(codes[:, 5], alphabet.encode(W)[:, 5])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_level_counts_and_reach(bits: int) -> None:
    W = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    levels = {kind: make_alphabet(W, kind, bits, 1.0) for kind in KINDS}
    assert levels["symmetric"].levels == 2**bits - 1
    assert levels["twos_complement"].levels == 2**bits
    assert levels["predecessor"].levels == 2**bits + 1
    for kind in ("symmetric", "twos_complement"):
        reached = levels[kind].decode(levels[kind].encode(W)).abs().amax(1)
        torch.testing.assert_close(reached, W.abs().amax(1))
    reach = levels["predecessor"].step * levels["predecessor"].high
    torch.testing.assert_close(reach, W.abs().amax(1).mean().expand(5, 1))


def test_percentile_moves_the_radius_and_zero_neurons_stay_zero() -> None:
    W = torch.randn(4, 1000, generator=torch.Generator().manual_seed(2))
    W[2] = 0
    full, cut = make_alphabet(W, "symmetric", 4, 1.0), make_alphabet(W, "symmetric", 4, 1.0, 0.9)
    alive = [0, 1, 3]
    torch.testing.assert_close(cut.step[alive] * cut.high, W[alive].abs().quantile(0.9, 1, keepdim=True))
    assert (cut.step[alive] < full.step[alive]).all()
    assert (full.encode(W)[2] == 0).all()
