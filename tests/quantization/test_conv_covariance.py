"""Covariances from moved images against those from the patches themselves."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laq.quantization import Recipe, quantize
from laq.quantization.calibration.covariance import Inputs
from laq.quantization.calibration.patches import Patches
from laq.quantization.operations.linear import Linear
from laq.quantization.threads import Pool, worker_pool
from tests.quantization.operations import operation_of_module


@pytest.fixture
def pool() -> Iterator[Pool]:
    with worker_pool() as pool:
        yield pool


def images(groups: int, C: int, h: int, w: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, groups * C, h, w, generator=generator, dtype=torch.float64)


def inputs(chunks: list[Patches], pool: Pool, *, shifts: bool) -> Inputs:
    groups, d = chunks[0].X.shape[0], chunks[0].X.shape[1:4].numel()
    sizes = [chunk.m for chunk in chunks]
    return Inputs([lambda c=c: c for c in chunks], sizes, groups, d, 9, pool, shifts)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("groups", "C", "h", "w"),
    [
        *[(1, 8, 6, 5), (1, 9, 1, 1), (1, 8, 2, 3), (2, 8, 3, 1), (3, 10, 4, 4), (1, 13, 40, 31)],
        *[(1, 17, 6, 5), (1, 17, 1, 1), (2, 18, 3, 1), (3, 20, 4, 4)],  # many channels
    ],
)
def test_moved_images_give_the_covariances_of_patches(
    groups: int, C: int, h: int, w: int, pool: Pool
) -> None:
    layer = operation_of_module(nn.Conv2d(groups * C, groups * 2, 3, padding=1, groups=groups))
    assert layer.has_shifts
    X, X_q = images(groups, C, h, w), images(groups, C, h, w, seed=1)
    chunks = [layer.patches(X[part], X_q[part], lambda _: None) for part in (slice(0, 2), slice(2, 3))]
    for cross in (True, False):
        found, expected = (inputs(chunks, pool, shifts=s).covariances(cross=cross) for s in (True, False))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"padding": 0},
        {"padding": 2, "dilation": 2},
        {"padding": "valid"},  # as where the borders are other than zeros, and padded beforehand
        {"padding": 1, "kernel_size": (3, 1)},
        {"padding": 1, "groups": 16},
    ],
)
def test_other_convolutions_have_no_shifts(options: dict[str, Any]) -> None:
    assert not operation_of_module(nn.Conv2d(16, 16, **{"kernel_size": 3, **options})).has_shifts
    assert operation_of_module(nn.Conv2d(16, 16, 3, padding="same")).has_shifts
    assert not Linear("linear", 1).has_shifts


@pytest.mark.parametrize("retain_rate", [1.0, 0.5])
def test_a_network_of_shifts_gets_the_same_codes_in_both_forms(retain_rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=2)
    ).double()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    X = torch.randn(20, 8, 7, 5, generator=generator, dtype=torch.float64)
    forms = ("residual", "covariance")
    results = [
        quantize(network, X, Recipe(bits=3, options={"form": f}, retain_rate=retain_rate)) for f in forms
    ]
    for one, other in zip(*(result.layers for result in results), strict=True):
        assert torch.equal(one.codes, other.codes)
    assert results[0].layers[0].flops != results[1].layers[0].flops
