"""Stage ``embeddings``: the penultimate features of every training image."""

from copy import deepcopy
from typing import Final

import numpy as np
import torch
from torch import nn

from laq.architectures import Classifier, NetworkDesign, Preprocess
from laq.dataset.images import ImageSet, read_images
from laq.errors import LaqError
from laq.files import replacing_folder
from laq.network.evaluation import collecting_features
from laq.network.weights import load_network
from laq.paths import DATASET
from laq.paths import EMBEDDINGS as FOLDER
from laq.progress import progress
from laq.sections.embeddings import OWN, Embeddings

_BATCH: Final = 16  # what float64 convolutions are fastest with: their patches stay in memory once had


def run(params: Embeddings) -> None:
    """Write ``features.npy`` float64 (n, f), ``labels.npy`` (n,) and ``class_names.npy``."""
    images = read_images(DATASET, "train")
    network = load_network() if params.network == OWN else imagenet_network(params.network)
    features = embed(network, images)
    with replacing_folder(FOLDER) as folder:
        np.save(folder / "features.npy", features)
        np.save(folder / "labels.npy", images.labels.numpy())
        np.save(folder / "class_names.npy", np.array(images.class_names))


def embed(network: nn.Module, data: ImageSet) -> np.ndarray:
    """The penultimate features (n, f) of every image, in float64.

    In float32 they would differ in their seventh digit from processor to processor, as sums are formed in
    another order, and what is chosen by them now and then with it.
    """
    exact = deepcopy(network).double()
    for module in exact.modules():
        if isinstance(module, Preprocess):
            module.precision = torch.float64
    with torch.inference_mode(), collecting_features(exact) as features:
        for images in progress(torch.split(data.images, _BATCH), "embed", unit="batch"):
            exact(images)
    return torch.cat(features).numpy()


def imagenet_network(name: str) -> Classifier:
    """A torchvision network with its ImageNet weights, at its own resolution.

    Raises:
        LaqError: torchvision has no such network, or the weights cannot be downloaded.
    """
    import torchvision  # noqa: PLC0415 (takes seconds, and only this needs it)

    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        views = weights.transforms()
        design = NetworkDesign(name, 1000, views.crop_size[0], tuple(views.mean), tuple(views.std))
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
