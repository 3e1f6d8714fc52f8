"""Wrappers around networks: whatever they are and wherever, parameters have the names that the network gave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from laq.quantization import QuantizationError, Recipe, load, quantize, read_metadata, save
from laq.quantization.execution.unwrap import unwrapped


def small() -> nn.Sequential:
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), shared, nn.Sequential(shared), nn.BatchNorm1d(4)).eval()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "compiled data parallel": lambda network: torch.compile(nn.DataParallel(network)),
    "data parallel of compiled": lambda network: nn.DataParallel(torch.compile(network)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_network_is_the_network_itself(wrapper: str) -> None:
    network = small()
    assert unwrapped(WRAPPERS[wrapper](network)) is network
    assert unwrapped(network) is network


def test_a_network_spread_over_processes_is_unwrapped(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        network = small()
        assert unwrapped(torch.compile(nn.parallel.DistributedDataParallel(network))) is network
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_parts_are_unwrapped_in_a_copy(wrapper: str) -> None:
    network = small()
    part = WRAPPERS[wrapper](nn.Sequential(WRAPPERS[wrapper](network[1]), nn.ReLU()))
    mixed = nn.Sequential(network[0], part, part)
    names = list(mixed.state_dict())
    plain = unwrapped(WRAPPERS[wrapper](mixed))
    assert list(plain.state_dict()) == [
        f"{name}.{kind}" for name in ("0", "1.0", "2.0") for kind in ("weight", "bias")
    ]
    assert plain[1] is plain[2]  # type: ignore[index]
    assert list(mixed.state_dict()) == names
    inputs = torch.randn(3, 4)
    expected = network[1](network[1](network[0](inputs)).relu()).relu()
    assert torch.equal(plain(inputs), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)")
def test_what_is_no_module_or_a_scripted_one_is_refused_in_a_line() -> None:
    scripted = torch.jit.trace(nn.Linear(4, 3), torch.rand(2, 4))
    with pytest.raises(QuantizationError, match="^network: found a ScriptModule, .* give the module"):
        quantize(scripted, torch.rand(8, 4), Recipe())
    with pytest.raises(QuantizationError, match="^network: found 'net'; give a torch.nn.Module"):
        quantize("net", torch.rand(8, 4), Recipe())  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [3, None, b"file"])
def test_what_is_no_path_is_refused_in_a_line(path: Any, tmp_path: Path) -> None:
    network = nn.Linear(4, 3)
    for read in (lambda: load(path, network), lambda: read_metadata(path)):
        with pytest.raises(QuantizationError, match=f"^path: found {path!r}; give the name of a file"):
            read()
    save(tmp_path / "packed", quantize(network, torch.rand(8, 4), Recipe(method="rtn")))
    with pytest.raises(QuantizationError, match="packed: network: found 'net'; give"):
        load(tmp_path / "packed", "net")  # type: ignore[arg-type]
