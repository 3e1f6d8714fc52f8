"""Triton's kernels against compiled code. ``test_gpu.py`` runs this file under Triton's interpreter."""

import pytest
import torch
from torch import Tensor, nn

from laq.quantization import Recipe, quantize
from laq.quantization.alphabet import AlphabetSpec, make_alphabet
from laq.quantization.methods import sequential
from laq.quantization.methods.problem import LayerProblem, RoundingRule
from laq.quantization.methods.triton_kernels import BlockRounding


def posed(kind: str, rule: str, bits: int = 3, dtype: torch.dtype = torch.float32) -> LayerProblem:
    """Two groups of 17 neurons, one of which has only zeros, with 9 weights each."""
    generator = torch.Generator().manual_seed(bits)
    W = torch.randn(2, 17, 9, generator=generator, dtype=dtype)
    W[0, 3] = 0
    noise = torch.rand(W.shape, generator=generator, dtype=torch.float64) if rule == "stochastic" else None
    alphabet = make_alphabet(W, AlphabetSpec(kind, bits, radius=0.8))  # type: ignore[arg-type]
    return LayerProblem(W, alphabet, RoundingRule(rule, 0.7, noise))  # type: ignore[arg-type]


def energies(d: int = 9, groups: int = 2) -> Tensor:
    """H of inputs of which one column is dead."""
    X = torch.randn(groups, 40, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64).relu()
    X[..., 4] = 0
    return X.mT @ X


@pytest.mark.parametrize(
    ("kind", "rule", "dtype"),
    [
        ("symmetric", "nearest", torch.float32),
        ("twos_complement", "hard", torch.float32),
        ("midrise", "soft", torch.float64),
        ("predecessor", "stochastic", torch.float32),
    ],
)
def test_a_block_of_columns_equals_the_compiled_one_to_the_bit(
    kind: str, rule: str, dtype: torch.dtype
) -> None:
    problem, H, b = posed(kind, rule, dtype=dtype), energies(), slice(2, 9)
    W = problem.W.double()
    for a, v in ((W @ H.triu(), torch.zeros_like(W)), (torch.zeros_like(W), W)):
        given = H[:, b, b], a[..., b], v[..., b]
        codes, errors = sequential._round_block(problem, b, *given)
        found, found_errors = BlockRounding.of(problem)(b, *given)
        assert torch.equal(found, codes)
        assert torch.equal(found_errors, errors)
        assert len(codes.unique()) > 3


def test_problems_with_alphabets_and_rules_of_their_own_are_one_launch() -> None:
    problems = [
        posed("symmetric", "hard", 2),
        posed("midrise", "stochastic", 4),
        posed("symmetric", "nearest", 8),
    ]
    H = energies()
    W = torch.cat([problem.W for problem in problems]).double()
    codes, _ = BlockRounding.of(*problems)(slice(0, 9), H.repeat(3, 1, 1), torch.zeros_like(W), W)
    for problem, found in zip(problems, codes.split(2), strict=True):
        w = problem.W.double()
        alone, _ = sequential._round_block(problem, slice(0, 9), H, torch.zeros_like(w), w)
        assert torch.equal(found, alone)


@pytest.mark.parametrize("method", ["gpfq", "gptq", "qronos"])
def test_a_network_gets_the_codes_of_the_cpu(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 3, (3, 2), padding=1),
        nn.ConvTranspose2d(3, 3, 1),  # whose weights of a neuron do not lie side by side in memory
        nn.Flatten(),
        nn.Linear(3 * 5 * 6, 5),  # more columns than a block has
    )
    images = torch.rand(30, 2, 11, 11)
    images[:, 1, :4] = 0
    form = {"form": "covariance"} if method == "gpfq" else {}
    recipe = Recipe(3, method, radius="error" if method == "gptq" else "auto", options=form)
    expected = quantize(network, images, recipe)
    launched: list[LayerProblem] = []
    assert expected.layers[2].operation == "conv_transpose2d"

    def on_gpu(problem: LayerProblem) -> BlockRounding:
        launched.append(problem)
        return BlockRounding.of(problem)

    monkeypatch.setattr(sequential, "_block_rounding", on_gpu)
    found = quantize(network, images, recipe)
    assert launched
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.alphabet.step, other.alphabet.step)
