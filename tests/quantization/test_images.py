"""Calibration images: whatever people have gives the same batches, and what cannot be used is said in one line."""

import hashlib
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from laq.architectures import NetworkDesign, build
from laq.quantization import QuantizationError
from laq.quantization.calibration.images import Batch, Digest, calibration_batches, check_runs


def pixels(count: int = 7, *shape: int) -> Tensor:
    return torch.randn(count, *(shape or (3, 8, 8)), generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(7)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: float = 1.0, labels: Tensor | None = None) -> Tensor:
        assert labels is None
        return self.norm(self.conv(x)).mean((2, 3)) * scale


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.conv(left) - self.conv(right)).mean((2, 3))


class Functional(nn.Module):
    """No module of a known class holds the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, weight=self.kernel).mean((-2, -1))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return self.linear(x * mask)


def batches(network: nn.Module, images: Any, size: int = 3) -> list[Batch]:
    return list(calibration_batches(network.eval(), images, size))


def joined(network: nn.Module, images: Any) -> Tensor:
    """The first input of all batches, which the network can be called with."""
    found = batches(network, images)
    for batch in found:
        network(*batch.args, **batch.kwargs)
        assert batch.count == len(batch.values[0])
    return torch.cat([batch.values[0] for batch in found])


def generated(*parts: Any) -> Iterator[Any]:
    yield from parts


def in_inference_mode() -> Tensor:
    with torch.inference_mode():
        return pixels().clone()


def read_only() -> np.ndarray[Any, Any]:
    array = pixels().numpy().copy()
    array.setflags(write=False)
    return array


FORMS: dict[str, Callable[[], Any]] = {
    "tensor": pixels,
    "array": lambda: pixels().numpy(),
    "read-only array": read_only,
    "array backwards": lambda: np.ascontiguousarray(pixels().numpy()[::-1])[::-1],
    "array of the other byte order": lambda: pixels().numpy().astype(">f4"),
    "array in channels-last memory": lambda: pixels().to(memory_format=torch.channels_last).numpy(),
    "tensor with gradients": lambda: pixels().requires_grad_(),
    "tensor of inference mode": in_inference_mode,
    "tuple of torch.split": lambda: pixels().split(2),
    "list of batches": lambda: [pixels()[:5], pixels()[5:]],
    "list of arrays": lambda: [pixels().numpy()[:5], pixels().numpy()[5:]],
    "generator": lambda: generated(pixels()[:1], pixels()[1:]),
    "DataLoader of images": lambda: DataLoader(pixels(), batch_size=2),  # type: ignore[arg-type]
    "DataLoader of images and labels": lambda: DataLoader(TensorDataset(pixels(), LABELS), batch_size=2),
    "generator of tuples": lambda: generated((pixels()[:2], LABELS[:2]), (pixels()[2:], LABELS[2:])),
    "generator of tuples of arrays": lambda: generated((pixels().numpy(), LABELS.numpy())),
    "images and labels": lambda: (pixels(), LABELS),
    "images and labels as arrays": lambda: (pixels().numpy(), LABELS.numpy()),
    "mapping": lambda: {"pixel_values": pixels(), "labels": LABELS},
    "mapping by the parameter's name": lambda: {"x": pixels(), "labels": LABELS, "image": ["a.png"] * 7},
    "batches by name": lambda: [{"image": pixels()[:4]}, UserDict(image=pixels().numpy()[4:])],
    "empty batches between": lambda: [pixels(0), pixels()[:3], pixels(0), pixels()[3:]],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
def test_images_are_the_same_in_whatever_form_they_come(form: str) -> None:
    network, digest = Convolution().eval(), Digest()
    assert torch.equal(joined(network, FORMS[form]()), pixels())
    for batch in calibration_batches(network, FORMS[form](), 3, digest):
        assert not any(value.is_inference() or value.requires_grad for value in batch.values)
    assert digest.hexdigest() == hashlib.sha256(pixels().numpy().tobytes()).hexdigest()


def test_one_tensor_is_cut_into_batches_and_given_batches_are_taken_as_they_are() -> None:
    network = Convolution()
    assert [batch.count for batch in batches(network, pixels())] == [3, 3, 1]
    assert [batch.count for batch in batches(network, (pixels(), LABELS))] == [3, 3, 1]
    assert [batch.count for batch in batches(network, {"img": pixels().numpy()})] == [3, 3, 1]
    assert [batch.count for batch in batches(network, [pixels(), pixels(1)])] == [7, 1]


def test_entries_by_name_go_by_keyword_and_labels_do_not() -> None:
    named = batches(Convolution(), {"x": pixels(), "labels": LABELS})[0]
    assert (named.args, [*named.kwargs]) == ((), ["x"])
    placed = batches(Convolution(), {"images": pixels(), "labels": LABELS})[0]
    assert (len(placed.args), placed.kwargs) == (1, {})


class AllOptional(Convolution):
    def forward(  # type: ignore[override]
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        assert pixel_values is not None
        return super().forward(pixel_values, labels=labels)


def test_a_forward_whose_parameters_all_have_defaults_gets_the_images() -> None:
    for images in (
        pixels(),
        (pixels(), LABELS),
        {"image": pixels()},
        {"pixel_values": pixels(), "labels": LABELS},
    ):
        assert torch.equal(joined(AllOptional(), images), pixels())


LEFT, RIGHT = pixels(), pixels(7).flip(0)


@pytest.mark.parametrize(
    "images",
    [
        (LEFT, RIGHT),
        (LEFT, RIGHT, LABELS),
        (LEFT.numpy(), RIGHT),
        {"left": LEFT, "right": RIGHT, "label": LABELS},
        DataLoader(TensorDataset(LEFT, RIGHT, LABELS), batch_size=2),
        [(LEFT[:3], RIGHT[:3]), [LEFT[3:], RIGHT[3:], LABELS[3:]]],
        ((LEFT[:3], RIGHT[:3]), (LEFT[3:], RIGHT[3:])),
    ],
)
def test_several_inputs_are_told_by_the_forwards_parameters(images: Any) -> None:
    network, digest = Siamese(), Digest()
    found = list(calibration_batches(network, images, 4, digest))
    for side, expected in enumerate((LEFT, RIGHT)):
        assert torch.equal(torch.cat([batch.values[side] for batch in found]), expected)
    assert all(len(batch.values) == 2 and len(network(*batch.args, **batch.kwargs)) for batch in found)
    hashes = (hashlib.sha256(t.numpy().tobytes()).digest() for t in (LEFT, RIGHT))
    assert digest.hexdigest() == hashlib.sha256(b"".join(hashes)).hexdigest()


def test_keyword_only_parameters_come_from_mappings() -> None:
    mask = torch.ones(7, 8)
    for batch in batches(Masked(), {"image": pixels(7, 8), "mask": mask}):
        assert (len(batch.args), [*batch.kwargs]) == (1, ["mask"])
        Masked()(*batch.args, **batch.kwargs)
    with pytest.raises(QuantizationError, match="takes x, mask, found 1 inputs; .* mappings"):
        batches(Masked(), pixels(7, 8))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float16, torch.bfloat16])
def test_the_digest_is_of_the_bytes_whatever_their_type(dtype: torch.dtype) -> None:
    images = (pixels() * 3).to(dtype)
    digest = Digest()
    assert all(b.args[0].dtype == dtype for b in calibration_batches(nn.Identity(), images, 2, digest))
    assert digest.hexdigest() == hashlib.sha256(images.view(torch.uint8).numpy().tobytes()).hexdigest()


def test_pixels_in_bytes_reach_a_network_that_normalizes_them() -> None:
    network = build(NetworkDesign("resnet20", 10, 32, (0.5,) * 3, (0.25,) * 3), seed=1)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    assert batches(network, images, 2)[0].args[0].dtype == torch.uint8
    with pytest.raises(QuantizationError, match=r"\(3, 32, 32\) is one image without a batch dimension"):
        batches(network, images[0])
    with pytest.raises(QuantizationError, match=r"give images.permute\(0, 3, 1, 2\)"):
        batches(network, images.permute(0, 2, 3, 1))


def test_checking_leaves_the_network_and_the_images_as_they_were() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 2), nn.BatchNorm1d(2))
    network[2].eval()
    images = pixels()
    before = network[3].running_mean.clone()  # type: ignore[union-attr, operator]
    list(calibration_batches(network, images, 4))
    assert [m.training for m in network] == [True, True, False, True]
    assert torch.equal(network[3].running_mean, before)  # type: ignore[arg-type]
    assert torch.equal(images, pixels())


def spoiled(value: float) -> Tensor:
    images = pixels()
    images[5, 1, 2, 3] = value
    return images


class Photographs(Dataset[tuple[Tensor, int]]):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return pixels()[index], index


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "conv": Convolution,
    "plain": lambda: nn.Sequential(nn.Conv2d(3, 4, 3)),
    "functional": Functional,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose1d(3, 4, 3)),
    "vectors": lambda: nn.Sequential(nn.Linear(8, 2)),
    "siamese": Siamese,
}


@pytest.mark.filterwarnings("ignore:.*[nN]ested ?[tT]ensor")
@pytest.mark.parametrize(
    ("network", "images", "message"),
    [
        ("plain", lambda: pixels()[0], r"\(3, 8, 8\) is one image without .*; give image\[None\]"),
        ("plain", lambda: list(pixels()), r"\(3, 8, 8\) is one image .* torch.stack"),
        ("functional", lambda: pixels()[0], r"\(3, 8, 8\) is one image"),
        ("linear", lambda: pixels()[0], r"\(3, 8, 8\) is one image"),
        ("vectors", lambda: pixels(8)[:, 0, 0, 0], r"\(8,\) is one image"),
        ("transposed", lambda: pixels(3, 5), r"\(3, 5\) is one image"),
        ("conv", lambda: pixels(8, 8, 3), r"\(8, 8, 3\) is one .*; give image.permute\(2, 0, 1\)\[None\]"),
        ("conv", lambda: pixels(7, 8, 9, 3), r"\(7, 8, 9, 3\) has its channels last.*permute\(0, 3, 1, 2\)"),
        ("functional", lambda: pixels(7, 8, 9, 3), r"channels last.*permute\(0, 3, 1, 2\)"),
        ("transposed", lambda: pixels(2, 5, 3), r"channels last.*permute\(0, 2, 1\)"),
        ("plain", lambda: pixels(7, 1, 8, 8), r"has 1 channels, .* first convolution takes 3"),
        ("functional", lambda: pixels(7, 4, 8, 8), r"has 4 channels, .* first convolution takes 3"),
        ("plain", lambda: pixels().double(), r"float64 images, .* in float32; .*images.to\(torch.float32\)"),
        ("plain", lambda: pixels().numpy().astype("u1"), r"uint8 images, while .* computes in float32"),
        ("functional", lambda: pixels().bfloat16(), r"bfloat16 images, while"),
        ("linear", lambda: pixels(7, 3, 9, 9), r"cannot be run on float32 \(7, 3, 9, 9\) .*243"),
        ("conv", lambda: spoiled(float("nan")), "calibration image 5 holds values that are not finite"),
        ("conv", lambda: spoiled(float("inf")).split(2), "calibration image 5 holds values"),
        ("conv", list, "no calibration images: give at least one"),
        ("conv", lambda: pixels(0), "no calibration images"),
        ("conv", lambda: [pixels(0), (pixels(0), LABELS[:0])], "no calibration images"),
        ("conv", lambda: "images.npy", r"found str 'images.npy'; give a tensor or NumPy array"),
        ("conv", lambda: Path("images"), r"found PosixPath 'images'; give"),
        ("conv", lambda: ["a.png", "b.png"], r"found str 'a.png'; give"),
        ("conv", lambda: None, "found NoneType; give"),
        ("conv", lambda: [[[1.0, 2.0]]], "found list; give"),
        ("conv", lambda: torch.tensor(3.0), r"found an array of torch.float32 \(\); give"),
        ("conv", lambda: np.array(["a", "b"]), r"found an array of <U1 \(2,\); give"),
        ("conv", lambda: np.array([None, {}]), r"found an array of object \(2,\); give"),
        ("conv", lambda: pixels().to_sparse(), r"found a sparse tensor; give images.to_dense\(\)"),
        ("conv", lambda: [pixels().to_sparse()], "found a sparse tensor"),
        ("conv", lambda: torch.nested.nested_tensor(list(pixels())), "found a nested tensor; give"),
        ("conv", lambda: (torch.nested.nested_tensor(list(pixels())),), "found a nested tensor; give"),
        ("conv", lambda: pixels().to("meta"), "found a tensor on the meta device, which holds no values"),
        ("conv", lambda: np.ma.masked_less(pixels().numpy(), 0), r"found a masked array; .*filled\(0\)"),
        ("conv", Photographs, r"found Photographs; give .*DataLoader"),
        ("conv", lambda: {"picture": pixels()}, r"found a mapping of picture; it must hold x, .* or 'image'"),
        ("conv", lambda: [()], "takes x, found 0 inputs"),
        ("siamese", pixels, r"takes left, right, found 1 inputs; give batches that are tuples"),
        ("siamese", lambda: [pixels(), pixels()], r"takes left, right, found 1 inputs"),
        ("siamese", lambda: {"left": pixels()}, r"a mapping of left; it must hold right"),
        ("siamese", lambda: {"image": pixels()}, r"a mapping of image; it must hold left, right"),
        ("siamese", lambda: (pixels(), pixels(6)), r"must be of the same images; found 7 and 6"),
    ],
)
def test_images_that_cannot_be_used_are_refused_in_one_line(
    network: str, images: Callable[[], Any], message: str
) -> None:
    with pytest.raises(QuantizationError, match=message) as caught:
        batches(NETWORKS[network](), images())
    assert "\n" not in str(caught.value)


class Spectrogram(nn.Module):
    """Adds the dimension of channels by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, None])


class ChannelsLast(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("network", "images"),
    [
        (Spectrogram(), pixels(3, 8, 8)),
        (ChannelsLast(nn.Conv2d(3, 4, 3)), pixels(2, 8, 8, 3)),
        (nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)), torch.arange(6).view(2, 3)),
        (nn.Sequential(nn.Linear(4, 2)), pixels(2, 5, 4)),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), pixels(1)),
    ],
)
def test_what_the_network_makes_room_for_by_itself_is_not_refused(network: nn.Module, images: Tensor) -> None:
    assert torch.equal(batches(network, images, 9)[0].args[0], images)


def test_a_network_that_cannot_be_run_is_explained_by_running_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(9, 2))
    with pytest.raises(QuantizationError, match=r"cannot be run on float32 \(7, 3, 8, 8\) .*shapes"):
        check_runs(network, Batch((pixels(),)))
    check_runs(nn.Sequential(nn.Conv2d(3, 4, 3)), Batch((pixels(),)))
