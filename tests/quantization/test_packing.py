"""Files of quantized networks: as small as they say, and read back bit for bit."""

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from laq.architectures import Classifier, NetworkDesign
from laq.quantization import (
    Alphabet,
    AlphabetSpec,
    QuantizationError,
    QuantizedLayer,
    QuantizedNetwork,
    Recipe,
    make_alphabet,
    quantize,
)
from laq.quantization.alphabet import Granularity
from laq.quantization.files.codes import pack_codes, pack_steps, unpack_codes, unpack_steps
from laq.quantization.files.header import Cut, read_header
from laq.quantization.files.packing import (
    codes_bytes,
    float32_bytes,
    keep_rows,
    load,
    load_quantized,
    pack,
    read_metadata,
    save,
)
from laq.quantization.recipe import NotQuantized
from tests.quantization import zoo
from tests.quantization.zoo import ARCHITECTURES, pixels

KINDS = ("symmetric", "twos_complement", "midrise", "predecessor")
CIFAR = Recipe(bits=3, method="rtn")


def classifier(architecture: str, classes: int = 10) -> Classifier:
    """With batch norms that have seen images, so that logits differ."""
    if architecture == "squeezenet":
        design = NetworkDesign(architecture, classes, 40, (0.5,) * 3, (0.25,) * 3)
        return Classifier(design, squeezenet1_1(num_classes=classes)).eval()
    return seen(zoo.classifier(architecture, classes))


def seen(network: Classifier) -> Classifier:
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            network.train()(pixels(4))
    return network.eval()


def rounded(network: nn.Module, spec: AlphabetSpec, ignore: tuple[str, ...] = ()) -> QuantizedNetwork:
    """``network`` with its weights rounded to nearest, layer by layer."""
    network, layers = copy.deepcopy(network), []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in ignore:
            layers.append(rounded_layer(name, module, spec))
            module.weight.data.copy_(layers[-1].alphabet.decode(layers[-1].codes))
    return QuantizedNetwork(network, tuple(layers), 0.5, replace(CIFAR, bits=spec.bits, alphabet=spec.kind))


def rounded_layer(name: str, module: nn.Conv2d | nn.Linear, spec: AlphabetSpec) -> QuantizedLayer:
    weight = module.weight.detach()
    alphabet = make_alphabet(weight.flatten(1)[None], spec)
    alphabet = alphabet.with_step(alphabet.step.view(-1, *[1] * (weight.ndim - 1)))
    return QuantizedLayer(name, spec.bits, alphabet.encode(weight), alphabet, 0.1, 1.0, 2.0)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {k: t for k, t in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def assert_same(network: nn.Module, other: nn.Module) -> None:
    states = tensors_of(network), tensors_of(other)
    assert states[0].keys() == states[1].keys()
    assert [k for k, t in states[0].items() if not torch.equal(t, states[1][k])] == []


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "squeezenet"])
def test_every_network_of_the_zoo_comes_back_bit_for_bit_from_a_small_file(
    architecture: str, tmp_path: Path
) -> None:
    network = classifier(architecture)
    result = rounded(network, AlphabetSpec(bits=2))
    size = save(tmp_path / "q.safetensors", result)
    assert size == (tmp_path / "q.safetensors").stat().st_size
    loaded = load(tmp_path / "q.safetensors", network)
    assert_same(loaded, result.network)
    with torch.no_grad():
        assert torch.equal(loaded(pixels()), result.network(pixels()))
    steps = 4 * sum(len(layer.codes) for layer in result.layers)
    rest = float32_bytes(network) - 4 * result.weights
    header = 1000 + 150 * len(tensors_of(network)) + 300 * len(result.layers)
    assert codes_bytes(result) == sum(2 * math.ceil(layer.codes.numel() / 8) for layer in result.layers)
    assert size <= codes_bytes(result) + steps + rest + header


class Small(nn.Module):
    """Convolutions and an odd number of weights, so that bits do not fill the last byte."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("bits", range(2, 13))
@pytest.mark.parametrize("kind", KINDS)
def test_each_alphabet_takes_the_bits_that_its_levels_need(kind: str, bits: int, tmp_path: Path) -> None:
    network = Small().eval()
    result = rounded(network, AlphabetSpec(kind, bits))  # type: ignore[arg-type]
    tensors, _ = pack(result)
    width = bits + 1 if kind == "predecessor" else bits
    assert tensors["codes:conv"].shape == (width, 17)
    assert tensors["codes:head"].shape == (width, 2)
    save(tmp_path / "q", result)
    again = load_quantized(tmp_path / "q", network)
    assert_same(again.network, result.network)
    assert [layer.levels for layer in again.layers] == [layer.levels for layer in result.layers]
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(again.layers, result.layers, strict=True))
    assert again.recipe == result.recipe


@pytest.mark.parametrize("seed", range(40))
def test_any_codes_of_any_alphabet_are_unpacked_as_they_were(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = sorted(
        torch.randint(-(2 ** (seed % 31 + 1)), 2 ** (seed % 31 + 1), (2,), generator=generator)
    )
    alphabet = Alphabet(torch.ones(1), int(low), int(high) + 1)
    count = int(torch.randint(1, 50, (1,), generator=generator))
    codes = torch.randint(alphabet.low, alphabet.high + 1, (count,), generator=generator).to(torch.int32)
    codes[0] = alphabet.high
    planes = pack_codes(codes, alphabet)
    assert planes.shape == (math.ceil(math.log2(alphabet.levels)), math.ceil(count / 8))
    assert torch.equal(unpack_codes(planes, count, alphabet.low), codes)


def test_codes_over_all_of_int32_do_not_overflow() -> None:
    codes = torch.tensor([-(2**31), -1, 0, 2**31 - 1], dtype=torch.int32)
    planes = pack_codes(codes, Alphabet(torch.ones(1), -(2**31), 2**31 - 1))
    assert planes.shape == (32, 1)
    assert torch.equal(unpack_codes(planes, 4, -(2**31)), codes)


def test_fused_and_corrected_networks_fit_the_architecture_they_came_from(tmp_path: Path) -> None:
    network = classifier("resnet20")
    recipe = Recipe(bits=3, fuse=True, bias_correction=True, retain_rate=0.2, ignore=("body.fc",))
    result = quantize(network, pixels(), recipe)
    save(tmp_path / "q", result)
    loaded = load(tmp_path / "q", network)
    assert len(result.folded) == 21
    assert isinstance(loaded.get_submodule("body.bn1"), nn.Identity)
    assert_same(loaded, result.network)
    assert torch.equal(loaded.body.fc.weight, network.body.fc.weight)
    with torch.no_grad():
        assert torch.equal(loaded(pixels(5)), result.network(pixels(5)))


def test_shared_layers_are_stored_once(tmp_path: Path) -> None:
    shared = nn.Linear(4, 4)
    network = nn.Sequential(shared, nn.ReLU(), shared, nn.BatchNorm1d(4)).eval()
    result = rounded(network, AlphabetSpec(bits=4))
    save(tmp_path / "q", result)
    loaded = load(tmp_path / "q", network)
    assert [layer.name for layer in result.layers] == ["0"]
    assert loaded[0] is loaded[2]
    assert_same(loaded, result.network)


@pytest.mark.parametrize(
    ("architecture", "head"), [("resnet20", "body.fc"), ("squeezenet", "body.classifier.1")]
)
@pytest.mark.parametrize("stored", ["codes", "floats"])
def test_a_cut_network_gives_the_chosen_logits(
    architecture: str, head: str, stored: str, tmp_path: Path
) -> None:
    network, cut = classifier(architecture, 30), Cut(head, (17, 3, 28))
    result = rounded(network, AlphabetSpec(bits=4), ignore=() if stored == "codes" else (head,))
    sizes = [save(tmp_path / "full", result), save(tmp_path / "cut", result, cut=cut)]
    loaded = load(tmp_path / "cut", network)
    with torch.no_grad():
        full, few = result.network(pixels(6)), loaded(pixels(6))
    assert few.shape == (6, 3)
    torch.testing.assert_close(few, full[:, [17, 3, 28]], rtol=1e-5, atol=1e-6)
    assert_same(loaded, keep_rows(result, cut).network)
    assert sizes[1] < sizes[0]
    assert read_metadata(tmp_path / "cut").cut == cut
    assert len(network(pixels())[0]) == len(full[0]) == 30


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut("body.fc", ()), r"rows of body.fc must be distinct and in 0..9, got \[\]"),
        (Cut("body.fc", (1, 1)), "distinct"),
        (Cut("body.fc", (-1,)), "in 0..9"),
        (Cut("body.fc", (10,)), "in 0..9"),
        (Cut("body.bn1", (1,)), "'body.bn1' is no Linear"),
        (Cut("nothing", (1,)), "name the classifier"),
    ],
)
def test_cuts_that_do_not_fit_are_refused(cut: Cut, message: str, tmp_path: Path) -> None:
    result = rounded(classifier("resnet20"), AlphabetSpec())
    with pytest.raises(QuantizationError, match=message):
        save(tmp_path / "q", result, cut=cut)
    assert list(tmp_path.iterdir()) == []


def test_the_header_says_what_is_inside_and_files_do_not_change_from_run_to_run(tmp_path: Path) -> None:
    result = rounded(Small().eval(), AlphabetSpec("midrise", 3))
    notes = {"classes": [1, 2]}
    for name in ("a", "b"):
        save(tmp_path / name, result, notes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    header = read_metadata(tmp_path / "a")
    assert header.notes == notes
    assert (header.recipe.method, header.recipe.alphabet) == ("rtn", "midrise")
    assert header.torch == torch.__version__
    first = header.layers[0]
    assert (first.name, first.bits, first.low, first.high, first.offset) == ("conv", 3, -4, 3, 0.5)
    assert first.shape == (5, 3, 3, 3)
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert len(file.metadata()) == 1


def test_the_header_holds_the_hash_of_the_calibration_images_however_they_come(tmp_path: Path) -> None:
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(5, 3, 2, 2)
    expected = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    for given in (images, images.split(2), images.to(memory_format=torch.channels_last)):
        save(tmp_path / "q", quantize(network, given, Recipe(batch_size=3)))
        assert read_metadata(tmp_path / "q").calibration == expected
        assert load_quantized(tmp_path / "q", network).calibration == expected


def test_what_is_not_quantized_is_named_in_the_file_with_its_reason(tmp_path: Path) -> None:
    result = rounded(Small().eval(), AlphabetSpec(), ignore=("head",))
    save(tmp_path / "all", result)
    rest = (NotQuantized("head", 15, "ignore names it"),)
    save(tmp_path / "q", replace(result, not_quantized=rest))
    assert load_quantized(tmp_path / "q", Small()).not_quantized == rest
    assert read_metadata(tmp_path / "q").not_quantized == rest
    assert b"not_quantized" not in (tmp_path / "all").read_bytes()


def test_equal_steps_are_stored_once() -> None:
    network = Small().eval()
    tensors = {g: pack(rounded(network, AlphabetSpec(granularity=g)))[0] for g in ("channel", "layer")}
    assert tensors["channel"]["step:conv"].shape == (5,)
    assert tensors["layer"]["step:conv"].shape == (1,)
    assert not any(name.endswith("num_batches_tracked") for name in tensors["layer"])


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def pickled(file: Path) -> None:
    torch.save({"weight": torch.ones(2)}, file)


def plain(file: Path) -> None:
    safetensors.torch.save_file(Small().state_dict(), file)


def edited(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Change the header, and nothing else."""

    def edit(file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            header = json.loads(opened.metadata()["laq"])
        tensors = safetensors.torch.load_file(file)
        change(header)
        safetensors.torch.save_file(tensors, file, {"laq": json.dumps(header)})

    return edit


def damaged_codes(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(file)
    tensors["codes:conv"].fill_(255)
    safetensors.torch.save_file(tensors, file, metadata)


def without_codes(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(file)
    del tensors["codes:conv"]
    safetensors.torch.save_file(tensors, file, metadata)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "not found; name a file that save wrote"),
        (truncated, "not a whole safetensors file"),
        (pickled, "not a whole safetensors file"),
        (lambda file: file.write_text("hello"), "not a whole safetensors file"),
        (plain, "holds no packed network"),
        (edited(lambda header: header.pop("recipe")), "header is damaged"),
        (edited(lambda header: header["layers"][0].pop("low")), "header is damaged"),
        (edited(lambda header: header.update(format=3, laq="9.0")), "format 3, written by laq 9.0.*upgrade"),
        (
            edited(lambda header: header["layers"][0].update(high=200)),
            "layer conv: codes or steps are damaged",
        ),
        (edited(lambda header: header.update(folded=["bn7"])), "the network has no bn7"),
        (damaged_codes, "layer conv: codes or steps are damaged"),
        (without_codes, "layer conv: codes or steps are damaged"),
    ],
)
def test_files_that_are_not_whole_are_refused_in_one_line(
    spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    network, file = Small().eval(), tmp_path / "network.safetensors"
    save(file, rounded(network, AlphabetSpec()))
    spoil(file)
    with pytest.raises(QuantizationError, match=f"network.safetensors: .*{message}") as caught:
        load(file, network)
    assert "\n" not in str(caught.value)


def test_files_of_another_network_are_refused_and_leave_it_as_it_is(tmp_path: Path) -> None:
    save(tmp_path / "q", rounded(Small().eval(), AlphabetSpec()))
    wider, half = Small(4), Small().half()
    before = copy.deepcopy(wider.state_dict())
    with pytest.raises(
        QuantizationError, match=r"2 of another shape.*head.weight float32 \(3, 5\) instead of"
    ):
        load(tmp_path / "q", wider)
    with pytest.raises(QuantizationError, match="conv.weight float32"):
        load(tmp_path / "q", half)
    with pytest.raises(QuantizationError, match=r"1 missing \(weight\); 7 unknown .conv.weight|7 unknown"):
        load(tmp_path / "q", nn.Linear(2, 2, bias=False))
    assert all(torch.equal(t, before[name]) for name, t in wider.state_dict().items())


def test_a_write_that_fails_leaves_nothing_behind_and_one_that_succeeds_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = Small().eval(), tmp_path / "q"
    save(file, rounded(network, AlphabetSpec(bits=2)))
    old = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save(file, rounded(network, AlphabetSpec(bits=8)))
    assert file.read_bytes() == old
    save(file, rounded(network, AlphabetSpec(bits=8)))
    assert read_metadata(file).layers[0].bits == 8
    assert [f.name for f in tmp_path.iterdir()] == ["q"]


DATA = Path(__file__).parent / "data"


def digest_of(network: nn.Module) -> str:
    """SHA-256 of all tensors' names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors_of(network).items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("file", "network", "expected"),
    [
        (
            "format1",  # fused, bias-corrected, cut, mid-rise
            Small(),
            "6d28d0046a0e41a211a9cb72a0fff5fb8fab754262352613eec419d5e9a203ee",
        ),
        (
            "format1_float16",  # with steps in float16
            Small().half(),
            "e7cb8d936165200e6260676b3838abaa825a49a5a09312ee50e353da02890cc2",
        ),
    ],
)
def test_files_of_format_1_load_and_are_written_as_they_were(
    file: str, network: nn.Module, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = DATA / f"{file}.safetensors"
    result, header = load_quantized(path, network), read_metadata(path)
    assert digest_of(result.network) == expected
    assert [(layer.operation, layer.parameter) for layer in result.layers] == [
        ("conv2d", "conv.weight"),
        ("linear", "head.weight"),
    ]
    monkeypatch.setattr(torch, "__version__", header.torch)
    tensors, metadata = pack(result, header.notes)
    again = read_header(metadata["laq"])
    assert replace(again, cut=header.cut) == header
    if header.cut is None:
        assert safetensors.torch.save(tensors, metadata) == path.read_bytes()


class Kinds(nn.Module):
    """Operations of all kinds; some have no module of their own, one weight has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.line = nn.Conv1d(6, 6, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose1d(6, 8, 2, stride=2, groups=2, bias=False)
        self.plain_up = nn.ConvTranspose1d(8, 6, 1)
        self.attention = nn.MultiheadAttention(6, 2, bias=False, batch_first=True)
        self.kernel = nn.Parameter(torch.empty(6, 6))
        self.vocabulary = nn.Linear(6, 7, bias=False)
        self.vocabulary.weight = self.embed.weight
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.plain_up(self.up(self.line(self.embed(tokens).mT))).mT
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.vocabulary(nn.functional.linear(x, self.kernel).mean(1))


OPERATIONS = {
    "embed.weight": "linear",
    "line.weight": "conv1d",
    "up.weight": "conv_transpose1d",
    "plain_up.weight": "conv_transpose1d",
    "attention.in_proj_weight": "linear",
    "attention.out_proj.weight": "linear",
    "kernel": "linear",
}


def rounded_kinds(network: nn.Module, spec: AlphabetSpec) -> QuantizedNetwork:
    """Every weight rounded with a step for each output channel, in float32, and then in its own type."""
    network, layers = copy.deepcopy(network), []
    for parameter, operation in OPERATIONS.items():
        weight = network.get_parameter(parameter)
        exact = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        groups = 2 if parameter == "up.weight" else 1
        if operation == "conv_transpose1d":
            rows = exact.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
            alphabet = make_alphabet(rows, spec)
            step = alphabet.step.expand(*rows.shape[:2], 1)[:, None].expand(-1, len(weight) // groups, -1, -1)
            alphabet = alphabet.with_step(step.flatten(0, 1))
        else:
            alphabet = make_alphabet(exact.flatten(1)[None], spec)
            alphabet = alphabet.with_step(alphabet.step.view(-1, *[1] * (weight.ndim - 1)))
        codes = alphabet.encode(exact)
        weight.data.copy_(alphabet.decode(codes))
        name = parameter.removesuffix(".weight")
        layers.append(QuantizedLayer(name, spec.bits, codes, alphabet, 0.1, 1.0, 2.0, operation, parameter))
    return QuantizedNetwork(network, tuple(layers), 0.5, replace(CIFAR, bits=spec.bits, alphabet=spec.kind))


TOKENS = torch.arange(14).remainder(7).view(2, 7)
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_weights_of_every_operation_and_type_come_back_bit_for_bit(
    granularity: Granularity, dtype: torch.dtype, tmp_path: Path
) -> None:
    network = Kinds().to(dtype).eval()
    result = rounded_kinds(network, AlphabetSpec("twos_complement", 3, granularity))
    save(tmp_path / "q", result)
    loaded = load_quantized(tmp_path / "q", Kinds().to(dtype))
    assert_same(loaded.network, result.network)
    assert loaded.network.vocabulary.weight is loaded.network.embed.weight
    for ours, theirs in zip(loaded.layers, result.layers, strict=True):
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.alphabet.decode(ours.codes), theirs.alphabet.decode(theirs.codes))
        assert (ours.name, ours.operation, ours.parameter) == (
            theirs.name,
            theirs.operation,
            theirs.parameter,
        )
    with torch.no_grad():
        assert torch.equal(loaded.network(TOKENS), result.network(TOKENS))


def test_steps_are_stored_once_for_each_output_channel() -> None:
    channel, layer = (
        pack(rounded_kinds(Kinds(), AlphabetSpec("symmetric", 4, granularity)))[0]
        for granularity in ("channel", "layer")
    )
    shapes = {name.removeprefix("step:"): tuple(t.shape) for name, t in channel.items() if "step:" in name}
    assert shapes == {
        "embed": (7,),
        "line": (6,),
        "up": (2, 4, 1),
        "plain_up": (1, 6, 1),
        "attention.in_proj_weight": (18,),
        "attention.out_proj": (6,),
        "kernel": (6,),
    }
    assert {tuple(t.shape) for name, t in layer.items() if "step:" in name} == {(1,)}
    assert "vocabulary.weight" not in channel


@pytest.mark.parametrize("seed", range(30))
def test_any_steps_that_broadcast_are_unpacked_as_they_were(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = torch.Size(torch.randint(1, 7, (seed % 4 + 1,), generator=generator).tolist())
    whole = torch.randint(2, (len(shape),), generator=generator).tolist()
    kept = [n if is_whole else 1 for n, is_whole in zip(shape, whole, strict=True)]
    step = torch.randint(3, kept, generator=generator).float()
    packed = pack_steps(step, shape)
    found = unpack_steps(packed, shape)
    assert packed.numel() <= step.expand(shape).numel()
    assert found is not None
    assert torch.equal(found.expand(shape), step.expand(shape))


def test_what_format_1_can_say_is_written_in_it_and_the_rest_is_not() -> None:
    def format_of(result: QuantizedNetwork) -> int:
        return read_header(pack(result)[1]["laq"]).format

    small = rounded(Small(), AlphabetSpec())
    assert format_of(small) == 1
    assert format_of(rounded_kinds(Kinds(), AlphabetSpec())) == 2
    sparse = replace(small, recipe=Recipe(method="gpfq_l0", options={"threshold": 0.9}))
    assert format_of(sparse) == 1
    assert read_header(pack(sparse)[1]["laq"]).recipe.options["threshold"] == 0.9
    half = replace(small, network=copy.deepcopy(small.network).half())
    assert format_of(half) == 2
    line = nn.Sequential(nn.Conv1d(3, 4, 3))
    layer = rounded_layer("0", line[0], AlphabetSpec())  # type: ignore[arg-type]
    assert format_of(replace(small, network=line, layers=(layer,))) == 2


@pytest.mark.parametrize(
    ("module", "outputs"),
    [
        (nn.Conv1d(4, 6, 3, bias=False), 6),
        (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), 6),
        (nn.Linear(4, 6, bias=False), 6),
        (nn.Bilinear(4, 4, 6, bias=False), 6),
    ],
)
def test_biases_that_were_added_find_their_place_in_any_module(
    module: nn.Module, outputs: int, tmp_path: Path
) -> None:
    network, layer = nn.Sequential(module, nn.Linear(2, 2)), nn.Linear(2, 2)
    corrected = copy.deepcopy(network)
    corrected[0].bias = nn.Parameter(torch.randn(outputs))
    save(tmp_path / "q", replace(rounded(nn.Sequential(layer), AlphabetSpec()), network=corrected, layers=()))
    assert_same(load(tmp_path / "q", network), corrected)
    assert network[0].bias is None


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small = Small()
        self.register_buffer("scale", torch.rand(3))
        self.register_buffer("places", torch.arange(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.small(x) * self.scale + self.places


def test_a_network_on_the_meta_device_is_whole_once_it_is_loaded(tmp_path: Path) -> None:
    result = rounded(Small().eval(), AlphabetSpec())
    save(tmp_path / "q", result)
    with torch.device("meta"):
        empty = Small()
    loaded = load(tmp_path / "q", empty)
    assert_same(loaded, result.network)
    assert not any(t.is_meta for t in loaded.state_dict().values())
    assert int(loaded.norm.num_batches_tracked) == 0
    with torch.no_grad():
        assert torch.equal(loaded(pixels()), result.network(pixels()))
    with torch.device("meta"):
        tied = Kinds()
    save(tmp_path / "t", rounded_kinds(Kinds(), AlphabetSpec()))
    assert (again := load(tmp_path / "t", tied)).vocabulary.weight is again.embed.weight
    assert empty.conv.weight.is_meta


def test_what_no_file_holds_is_not_made_up_for_a_network_on_the_meta_device(tmp_path: Path) -> None:
    save(tmp_path / "q", rounded(Remembering(), AlphabetSpec()))
    assert torch.equal(load(tmp_path / "q", Remembering()).places, torch.arange(3.0))
    with torch.device("meta"):
        empty = Remembering()
    with pytest.raises(QuantizationError, match="q: places is on the meta device .* build the network on"):
        load(tmp_path / "q", empty)
    with torch.device("meta"):
        attribute = Small()
        attribute.conv.mean = torch.zeros(3)
    with pytest.raises(QuantizationError, match=r"conv.mean is on the meta device"):
        load(tmp_path / "q", attribute)
    with pytest.raises(QuantizationError, match="0.weight has no shape yet; run the network once"):
        load(tmp_path / "q", nn.Sequential(nn.LazyLinear(2)))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "data parallel"])
def test_no_wrapper_gets_into_files_nor_out_of_them(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    network = Small().eval()
    result = rounded(network, AlphabetSpec())
    save(tmp_path / "plain", result)
    inside = copy.deepcopy(result.network)
    inside.head = wrap(inside.head)
    for number, wrapped in enumerate((wrap(copy.deepcopy(result.network)), inside)):
        save(tmp_path / f"wrapped{number}", replace(result, network=wrapped))
        assert (tmp_path / f"wrapped{number}").read_bytes() == (tmp_path / "plain").read_bytes()
        cut = keep_rows(replace(result, network=wrapped), Cut("head", (1,)))
        assert_same(cut.network, keep_rows(result, Cut("head", (1,))).network)
    loaded = load(tmp_path / "plain", wrap(network))
    assert type(loaded) is Small
    assert_same(loaded, result.network)


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    result = rounded(Small(), AlphabetSpec())
    result.network.register_buffer("first", result.network.head.bias.detach()[:1])
    fresh = Small()
    fresh.register_buffer("first", torch.zeros(1))
    save(tmp_path / "q", result)
    assert_same(load(tmp_path / "q", fresh), result.network)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(value: float, tmp_path: Path) -> None:
    result = rounded(Small(), AlphabetSpec())
    file = tmp_path / "q"
    save(file, result)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(file)
    tensors["head.bias"][1] = value
    safetensors.torch.save_file(tensors, file, metadata)
    with pytest.raises(QuantizationError, match="q: head.bias holds values that are not finite"):
        load(file, Small())
    result.network.head.bias.data[1] = value
    with pytest.raises(QuantizationError, match=r"^head.bias holds values that are not finite"):
        save(tmp_path / "other", result)
    assert not (tmp_path / "other").exists()


def test_a_mask_may_hold_infinity(tmp_path: Path) -> None:
    network = Small()
    network.register_buffer("mask", torch.full((2,), -math.inf))
    save(tmp_path / "q", rounded(network, AlphabetSpec()))
    assert load(tmp_path / "q", network).mask.tolist() == [-math.inf, -math.inf]


class OwnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return nn.functional.linear(input, self.weight, bias=self.bias)


class FunctionalHead(nn.Module):
    def __init__(self, classes: int = 9) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head_weight = nn.Parameter(torch.randn(classes, 4))
        self.head_bias = nn.Parameter(torch.randn(classes))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.conv(x).mean((2, 3)), self.head_weight, self.head_bias)


class OneByOne(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 9, 1), nn.Flatten())


def own_linear() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), OwnLinear(4, 9))


@pytest.mark.parametrize("stored", ["codes", "floats"])
@pytest.mark.parametrize(
    ("make", "head"), [(own_linear, "3"), (FunctionalHead, "head_weight"), (OneByOne, "2")]
)
def test_any_classifier_that_is_a_matrix_can_be_cut(
    make: Callable[[], nn.Module], head: str, stored: str, tmp_path: Path
) -> None:
    network, cut = make(), Cut(head, (8, 0, 3))
    result = rounded(network, AlphabetSpec())
    if head == "head_weight" and stored == "codes":
        weight = result.network.head_weight
        alphabet = make_alphabet(weight.detach()[None], AlphabetSpec())
        alphabet = alphabet.with_step(alphabet.step[0])
        layer = QuantizedLayer(
            head, 4, alphabet.encode(weight.detach()), alphabet, 0.1, 1.0, 2.0, "linear", head
        )
        weight.data.copy_(alphabet.decode(layer.codes))
        result = replace(result, layers=(*result.layers, layer))
    elif stored == "floats":
        result = rounded(network, AlphabetSpec(), ignore=(head,))
    save(tmp_path / "q", result, cut=cut)
    loaded = load(tmp_path / "q", make())
    with torch.no_grad():
        full, few = result.network(pixels(6)), loaded(pixels(6))
    torch.testing.assert_close(few, full[:, [8, 0, 3]], rtol=1e-4, atol=1e-5)


def test_a_classifier_whose_weights_serve_elsewhere_is_not_cut(tmp_path: Path) -> None:
    result = rounded_kinds(Kinds(), AlphabetSpec())
    with pytest.raises(QuantizationError, match="another layer shares the weights of vocabulary"):
        save(tmp_path / "q", result, cut=Cut("vocabulary", (1,)))
    with pytest.raises(QuantizationError, match="'up' is no Linear or ungrouped convolution"):
        save(tmp_path / "q", result, cut=Cut("up", (1,)))
    with pytest.raises(QuantizationError, match="'kernel' is no Linear"):
        save(tmp_path / "q", result, cut=Cut("kernel", (1,)))


@pytest.mark.parametrize("notes", [{"a": torch.ones(1)}, {"a": {1, 2}}])
def test_notes_that_json_cannot_hold_are_refused(notes: dict, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="^notes: .*; give what JSON can hold"):
        save(tmp_path / "q", rounded(Small(), AlphabetSpec()), notes)
