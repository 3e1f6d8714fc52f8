"""Stage ``embeddings``: the penultimate features of every training image."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Final

import numpy as np
import torch
from torch import nn

from laq.architectures import Classifier, NetworkDesign, Preprocess
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


def run(params: Embeddings) -> None:
    """Write ``features.npy`` float64 (n, f), ``labels.npy`` (n,) and ``class_names.npy``."""
    images = read_images(DATASET, "train")
    own = params.network == OWN
    network = load_network() if own else imagenet_network(params.network, images.preprocessing)
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
        with torch.inference_mode(), collecting_features(exact) as features:
            exact(images)
        yield features[0].numpy()


def imagenet_network(name: str, preprocessing: Preprocessing) -> Classifier:
    """A torchvision network with its ImageNet weights, at its own resolution.

    Raises:
        LaqError: torchvision has no such network, or the weights cannot be downloaded.
    """
    import torchvision  # noqa: PLC0415 (takes seconds, and only this needs it)

    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        views = weights.transforms()
        side, mean, std = views.crop_size[0], tuple(views.mean), tuple(views.std)
        design = NetworkDesign(name, 1000, side, mean, std, preprocessing)
    except (ValueError, AttributeError) as error:
        raise LaqError(
            f"embeddings.network: {name!r} is neither {OWN!r} nor a torchvision classifier"
        ) from error
    try:
        body = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:
        raise LaqError(
            f"embeddings.network: the ImageNet weights of {name} cannot be downloaded ({error}); "
            f"put {weights.url.rsplit('/', 1)[1]} into {torch.hub.get_dir()}/checkpoints, or use "
            f"embeddings.network: {OWN}"
        ) from error
    return Classifier(design, body).eval()
