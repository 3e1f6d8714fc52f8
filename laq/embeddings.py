"""Stage ``embeddings``: the penultimate features of every training image."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from laq.architectures import (
    Classifier,
    NetworkDesign,
    Preprocess,
    classifier_head,
    make_body,
    usual_of,
)
from laq.architectures.registry import no_statistics
from laq.dataset.images import ImageSet, read_images
from laq.errors import LaqError
from laq.files import replacing_folder, write_array
from laq.network.evaluation import collecting_features
from laq.network.weights import load_network
from laq.paths import DATASET
from laq.paths import EMBEDDINGS as FOLDER
from laq.pictures import Preprocessing
from laq.progress import progress
from laq.sections.embeddings import OWN, Embeddings

_BATCH: Final = 16  # what float64 convolutions are fastest with: their patches stay in memory once had
_CONV2D: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def run(params: Embeddings) -> None:
    """Write ``features.npy`` float64 (n, f), ``labels.npy`` (n,) and ``class_names.npy``."""
    images = read_images(DATASET, "train")
    own = params.network == OWN
    network = load_network() if own else foreign_network(params, images.preprocessing)
    with replacing_folder(FOLDER) as folder:
        write_array(folder / "features.npy", len(images), embed(network, images))
        np.save(folder / "labels.npy", images.labels.numpy())
        np.save(folder / "class_names.npy", np.array(images.class_names))


def embed(network: nn.Module, data: ImageSet) -> Iterator[np.ndarray]:
    """The penultimate features (b, f) of every image, in float64 and in batches.

    In float32 they would differ in their seventh digit from processor to processor, as sums are formed in
    another order, and what is chosen by them now and then with it.
    """
    exact = deepcopy(network).double()
    for module in exact.modules():
        if isinstance(module, Preprocess):
            module.precision = torch.float64
    batches = progress(data.batches(_BATCH), "embed", unit="batch", total=-(-len(data) // _BATCH))
    for images in batches:
        with torch.inference_mode(), collecting_features(exact) as features, DepthwiseByTaps():
            exact(images)
        yield features[0].numpy()


class DepthwiseByTaps(TorchFunctionMode):
    """Depthwise convolutions in float64 as a sum over the kernel's taps, two to three times as fast as torch.

    In that type torch convolves each channel for itself. A tap multiplies a shifted view of all channels.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or what takes its place."""
        if func is F.conv2d:
            call = dict(zip(_CONV2D, args, strict=False)) | (kwargs or {})
            X, weight = call["input"], call["weight"]
            depthwise = 1 < call.get("groups", 1) == X.shape[1] == weight.shape[0]
            if depthwise and X.dtype == torch.float64 and not isinstance(call.get("padding"), str):
                return _depthwise(call)
        return func(*args, **(kwargs or {}))


def _depthwise(call: Mapping[str, Any]) -> Tensor:
    """``conv2d`` of images (n, c, h, w) with a kernel (c, 1, kh, kw), a channel with its own, by taps."""
    weight, bias = call["weight"], call.get("bias")
    usual = {"stride": 1, "padding": 0, "dilation": 1}
    (sh, sw), (ph, pw), (dh, dw) = (_pair(call.get(name, value)) for name, value in usual.items())
    X = call["input"].contiguous(memory_format=torch.channels_last)  # whose taps are long runs of memory
    X = F.pad(X, (pw, pw, ph, ph)) if ph or pw else X
    _, _, kh, kw = weight.shape
    rows, columns = X.shape[2] - dh * (kh - 1), X.shape[3] - dw * (kw - 1)
    taps = (
        (X[:, :, dh * i : dh * i + rows : sh, dw * j : dw * j + columns : sw], weight[:, 0, i, j, None, None])
        for i in range(kh)
        for j in range(kw)
    )
    shifted, tap = next(taps)
    out: Tensor = shifted * tap
    for shifted, tap in taps:
        out.addcmul_(shifted, tap)
    return out if bias is None else out + bias[:, None, None]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def foreign_network(params: Embeddings, preprocessing: Preprocessing) -> Classifier:
    """Another network than the study's, with the weights that it comes with, at their resolution.

    Raises:
        LaqError: there is none of that name, its weights cannot be had, or their mean and std are not known.
    """
    try:
        usual = usual_of(params.network)
        body = make_body(params.network, params.arguments, pretrained=True)
    except LaqError as error:
        reason = str(error).replace("network.architecture", "embeddings.network")
        reason = reason.replace("network.arguments", "embeddings.arguments")
        raise LaqError(f"{reason}; or use embeddings.network: {OWN}") from error
    mean, std = params.mean or usual.mean, params.std or usual.std
    if mean is None or std is None:
        raise no_statistics("embeddings", params.network)
    size = params.input_size or usual.input_size or preprocessing.size
    outputs = classifier_head(body).out_features
    return Classifier(NetworkDesign(params.network, outputs, size, mean, std, preprocessing), body).eval()
