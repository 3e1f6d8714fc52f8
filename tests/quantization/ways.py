"""The ways in which a network is run, and what must be the same by whichever way."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from laq.quantization import QuantizedNetwork
from laq.quantization.calibration.batch import Batch
from laq.quantization.execution import graph

WAYS = ("fx", "export", "hooks")


@contextmanager
def by(way: str) -> Iterator[None]:
    """Quantize as if the ways that come first had failed, of the network as it was given."""
    by_fx = graph._trace_fx

    def fails(network: nn.Module, batch: Batch) -> Any:
        return by_fx(network, batch) if isinstance(network, fx.GraphModule) else "not this time"

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        if way != "fx":
            patch.setattr(graph, "_trace_fx", fails)
        if way == "hooks":
            patch.setattr(graph, "_export", lambda *_: "nor this")
            warnings.filterwarnings("ignore", "the network has no graph")
        yield


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """In float64, where no tie falls this way or that."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make().double().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.uniform_(-0.5, 0.5)
        return network


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs_of(network: nn.Module, *inputs: Tensor) -> Any:
    with torch.no_grad():
        return network(*(t.clone() for t in inputs))


def error(truth: Tensor, found: Tensor) -> float:
    return ((truth - found).norm() / truth.norm()).item()


def assert_same(results: list[QuantizedNetwork]) -> None:
    """All but what tells the ways apart."""
    for result in results[1:]:
        assert [layer.name for layer in result.layers] == [layer.name for layer in results[0].layers]
        for ours, theirs in zip(result.layers, results[0].layers, strict=True):
            assert torch.equal(ours.codes, theirs.codes), ours.name
            assert ours.operation == theirs.operation
            assert ours.relative_error == pytest.approx(theirs.relative_error, rel=1e-9), ours.name
        assert result.relative_error == pytest.approx(results[0].relative_error, rel=1e-9)
        names = [[(other.name, other.weights) for other in r.not_quantized] for r in (result, results[0])]
        assert names[0] == names[1]
