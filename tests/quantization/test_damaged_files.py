"""Packed files that were tampered with: each is refused in one line that names it, or is whole after all."""

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from laq.quantization import AlphabetSpec, QuantizationError, Recipe, quantize
from laq.quantization.files.header import Cut
from laq.quantization.files.packing import load, read_metadata, save
from tests.quantization.test_packing import Kinds, Small, rounded, rounded_kinds

Tensors = dict[str, Tensor]
# What no field of a header may be, or few.
NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 25, 64, 2**31, -(2**31), 2**63, 2**64, 10**400, -0.5, 0.25, 1e308, 1e-320,
    float("nan"), float("inf"), "", "nothing", "a\nb", "conv", "codes:conv", "\u2028" * 5, "x" * 10_000,
    [], [0], [-1], [1, -1], [2**40, 2**40], [-2, -3], [[]], [None], {}, {"a": 1}, {"": None},
]  # fmt: skip


def lots_of(seed: int | str) -> random.Random:
    return random.Random(seed)  # noqa: S311 (nothing is kept secret)


class Packed:
    """A file in parts, each of which can be changed."""

    def __init__(self, network: nn.Module, path: Path) -> None:
        self.network, self.path, self.whole = network, path, path.read_bytes()
        with safetensors.safe_open(path, framework="pt") as file:
            self.header: dict[str, Any] = json.loads(file.metadata()["laq"])
        self.tensors = safetensors.torch.load_file(path)

    def write(self, header: Any, tensors: Tensors) -> None:
        text = header if isinstance(header, str) else json.dumps(header)
        safetensors.torch.save_file(tensors, self.path, {"laq": text})

    def check(self) -> str:
        """Read the file: what the error says, or nothing if the network is whole."""
        message = self.refusal(lambda: load(self.path, self.network))
        assert message or not self.refusal(lambda: read_metadata(self.path))
        return message

    def refusal(self, read: Callable[[], Any]) -> str:
        try:
            read()
        except QuantizationError as error:
            message = str(error)
        else:
            return ""
        assert message.startswith(f"{self.path}: ")
        assert len(message.splitlines()) == 1
        assert len(message) < 1000
        return message


@pytest.fixture(params=["format 1", "format 2"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Packed:
    torch.manual_seed(1)
    file = tmp_path / "network.safetensors"
    if request.param == "format 1":
        save(file, rounded(Small(), AlphabetSpec("midrise", 3)), {"classes": [0, 1]}, Cut("head", (2, 0)))
        return Packed(Small(), file)
    save(file, rounded_kinds(Kinds(), AlphabetSpec("twos_complement", 4)))
    return Packed(Kinds(), file)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values within a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def changed(header: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    header = copy.deepcopy(header)
    target = header
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return header


def test_a_header_with_any_value_of_another_kind_is_refused_or_says_the_same(packed: Packed) -> None:
    refused = 0
    for path in places(packed.header):
        for value in lots_of(str(path)).sample(NASTY, 12):
            packed.write(changed(packed.header, path, value), packed.tensors)
            refused += bool(packed.check())
    assert refused > 500


def test_a_header_without_any_of_its_values_is_refused_or_says_the_same(packed: Packed) -> None:
    for path in places(packed.header):
        if path:
            header = copy.deepcopy(packed.header)
            target = header
            for key in path[:-1]:
                target = target[key]
            del target[path[-1]]
            packed.write(header, packed.tensors)
            packed.check()


def retyped(tensor: Tensor, lots: random.Random) -> Tensor:
    return tensor.to(
        lots.choice([torch.float16, torch.float64, torch.int32, torch.bool, torch.bfloat16, torch.uint8])
    )


def reshaped(tensor: Tensor, lots: random.Random) -> Tensor:
    flat = tensor.flatten()
    return lots.choice(
        [flat, tensor[None], tensor[..., None], flat[:0], flat[:1], flat[0], torch.cat([flat, flat])]
    ).clone()


def refilled(tensor: Tensor, lots: random.Random) -> Tensor:
    if not tensor.is_floating_point():
        return torch.full_like(tensor, lots.choice([0, 1, 170, 255]))
    other = tensor.clone()
    other.view(-1)[lots.randrange(other.numel())] = lots.choice([float("nan"), float("inf"), 0.0, 1e38])
    return other


CHANGES: list[Callable[[Tensor, random.Random], Tensor]] = [retyped, reshaped, refilled]


@pytest.mark.parametrize("seed", range(40))
def test_tensors_of_another_type_shape_or_content_are_refused_or_fit(packed: Packed, seed: int) -> None:
    lots = lots_of(seed)
    tensors = dict(packed.tensors)
    for name in lots.sample(sorted(tensors), lots.randint(1, 2)):
        if (lot := lots.randrange(5)) == 3:
            del tensors[name]
        elif lot == 4:
            tensors[lots.choice(["ghost", "codes:ghost", "step:ghost", f"{name}.weight", "codes:"])] = (
                tensors[name].clone()
            )
        else:
            tensors[name] = CHANGES[lot](tensors[name], lots)
    packed.write(packed.header, tensors)
    packed.check()


@pytest.mark.parametrize("seed", range(60))
def test_bytes_that_were_cut_flipped_or_added_are_refused_or_fit(packed: Packed, seed: int) -> None:
    lots = lots_of(seed)
    content = bytearray(packed.whole)
    for _ in range(lots.randint(1, 4)):
        # Half of the time within the header, where everything matters.
        place = lots.randrange(len(content) if lots.random() < 0.5 else 400)
        if (lot := lots.randrange(4)) == 0:
            del content[place:]
        elif lot == 1:
            content[place:place] = lots.randbytes(lots.randint(1, 9))
        elif lot == 2:
            del content[place : place + lots.randint(1, 9)]
        else:
            content[place : place + 1] = lots.randbytes(1)
        if len(content) < 400:
            break
    packed.path.write_bytes(content)
    packed.check()


def bomb(packed: Packed) -> None:
    packed.write("[" * 100_000 + "]" * 100_000, packed.tensors)


def deep_notes(packed: Packed) -> None:
    text = json.dumps(packed.header)
    packed.write(
        text.replace('"notes": {', '"notes": {"a": ' + "[" * 5000 + "]" * 5000 + ", "), packed.tensors
    )


def huge_length(packed: Packed) -> None:
    packed.path.write_bytes(struct.pack("<Q", 2**62) + packed.whole[8:])


def huge_tensor(packed: Packed) -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
    packed.path.write_bytes(struct.pack("<Q", len(text)) + text + b"0000")


def empty_tensor_of_huge_shape(packed: Packed) -> None:
    header = json.dumps({"laq": json.dumps(packed.header)})
    text = f'{{"__metadata__":{header},"a":{{"dtype":"F32","shape":[0,{2**40},{2**40}],"data_offsets":[0,0]}}}}'.encode()
    packed.path.write_bytes(struct.pack("<Q", len(text)) + text)


def huge_layer(packed: Packed) -> None:
    packed.write(changed(packed.header, ("layers", 0, "shape"), [2**40, 2**40]), packed.tensors)


def long_number(packed: Packed) -> None:
    packed.write(json.dumps(packed.header).replace('"format": ', '"format": ' + "9" * 5000), packed.tensors)


def repeated_layer(packed: Packed) -> None:
    layers = packed.header["layers"]
    packed.write({**packed.header, "layers": [*layers, layers[0]]}, packed.tensors)


def many_layers(packed: Packed) -> None:
    layers = [{**packed.header["layers"][0], "name": f"layer{k}"} for k in range(5_000)]
    packed.write({**packed.header, "layers": layers}, packed.tensors)


def other_bits(packed: Packed) -> None:
    packed.write(changed(packed.header, ("layers", 0, "bits"), 7), packed.tensors)


def folded_layer(packed: Packed) -> None:
    name = packed.header["layers"][0]["name"]
    packed.write({**packed.header, "folded": [name]}, packed.tensors)


def number_beyond_floats(packed: Packed) -> None:
    packed.write(changed(packed.header, ("recipe", "memory_gib"), 10**400), packed.tensors)


def other_alphabet(packed: Packed) -> None:
    packed.write(changed(packed.header, ("recipe", "alphabet"), "gothic"), packed.tensors)


def codes_and_floats(packed: Packed) -> None:
    layer = packed.header["layers"][0]
    name = layer.get("parameter") or f"{layer['name']}.weight"
    packed.write(packed.header, {**packed.tensors, name: torch.zeros(layer["shape"])})


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (bomb, "header is damaged .*recursion"),
        (deep_notes, "header is damaged"),
        (huge_length, "not a whole safetensors file"),
        (huge_tensor, "not a whole safetensors file"),
        (empty_tensor_of_huge_shape, ""),
        (huge_layer, "1 of another shape"),
        (long_number, "header is damaged .*number out of range"),
        (repeated_layer, "header is damaged .*layers: found"),
        (many_layers, "damaged"),
        (other_bits, "codes or steps are damaged"),
        (folded_layer, "the network has no"),
        (number_beyond_floats, "header is damaged"),
        (other_alphabet, "header is damaged .*recipe.*alphabet.*gothic"),
        (codes_and_floats, "is there as codes and as floats"),
    ],
)
def test_known_ways_to_tamper_are_refused(
    packed: Packed, tamper: Callable[[Packed], None], message: str
) -> None:
    tamper(packed)
    found = packed.check()
    assert found
    with pytest.raises(QuantizationError, match=f"network.safetensors: .*{message}"):
        load(packed.path, packed.network)


@pytest.fixture(scope="module")
def with_inputs(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """One that says what the network is called with, as activations are rounded."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    path = tmp_path_factory.mktemp("rounded") / "network.safetensors"
    save(path, quantize(network, torch.rand(4, 1, 2, 2), Recipe(method="rtn", activations=8)))
    return Packed(network, path)


IMAGES = {"keyword": "", "shape": [1, 2, 2], "dtype": "float32"}


@pytest.mark.parametrize(
    "inputs",
    [
        *(
            [{**IMAGES, "shape": shape}]
            for shape in ([-1, 8, 8], [0], [2**62, 2**62], [3] * 100, [1] * 100, [3, 60_000, 60_000], [10**9])
        ),
        [{**IMAGES, "keyword": "ghost"}],
        [IMAGES, IMAGES],
        [{**IMAGES, "keyword": "input"}] * 2,
        [IMAGES] + [{**IMAGES, "keyword": f"x{k}", "shape": [2**27]} for k in range(9)],
        *([{**IMAGES, "dtype": dtype}] for dtype in ("gothic", "nn", "quint8")),
    ],
)
def test_inputs_that_no_network_has_are_refused_and_take_no_memory(
    with_inputs: Packed, inputs: list[Any]
) -> None:
    with_inputs.write({**with_inputs.header, "inputs": inputs}, with_inputs.tensors)
    assert "damaged" in with_inputs.check()


def test_inputs_as_they_were_are_read(with_inputs: Packed) -> None:
    with_inputs.write({**with_inputs.header, "inputs": [IMAGES]}, with_inputs.tensors)
    assert not with_inputs.check()
