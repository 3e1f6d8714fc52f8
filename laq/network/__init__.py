"""Stage ``network``: the network under study, trained here or from elsewhere, and its scores."""

from pathlib import Path
from typing import Any, Final

import torch

from laq.architectures import Classifier, NetworkDesign, build
from laq.dataset.images import ImageSet, read_images, read_manifest
from laq.errors import LaqError
from laq.files import digest, project_root, replacing_folder, write_json
from laq.imports import code_digest
from laq.network.evaluation import Scores, collecting_features, evaluate, predict, score
from laq.network.training import fit, training_device
from laq.network.weights import load_foreign_weights, load_network, load_tensors, read_design, save_tensors
from laq.paths import DATASET, DESIGN, WEIGHTS
from laq.paths import NETWORK as FOLDER
from laq.sections.network import Network

_COUNTED: Final = 100  # images whose pixels are counted at once

__all__ = [
    "FOLDER",
    "WEIGHTS",
    "Classifier",
    "NetworkDesign",
    "Scores",
    "build",
    "collecting_features",
    "evaluate",
    "fit",
    "load_network",
    "load_tensors",
    "predict",
    "read_design",
    "run",
    "save_tensors",
    "score",
]


def run(params: Network) -> None:
    """Write the network's weights, and ``network.json``: its design, origin and test scores."""
    train, test = read_images(DATASET, "train"), read_images(DATASET, "test")
    network, origin = make_network(params, train)
    scores = evaluate(network, test, range(len(test.class_names)))
    with replacing_folder(FOLDER) as folder:
        save_tensors(folder / WEIGHTS, network.state_dict())
        record = {"design": network.design.to_json(), "origin": origin}
        write_json(
            folder / DESIGN,
            {**record, "test_top1_percent": scores.top1_all, "test_top5_percent": scores.top5_all},
        )
    _checkpoint(params).unlink(missing_ok=True)


def make_network(params: Network, train: ImageSet) -> tuple[Classifier, dict[str, Any]]:
    """Build the network and give it its weights; also returns where these came from."""
    design = _design(params, train)
    origin: dict[str, Any] = {"source": params.source}
    network = build(design, params.training.seed if params.training else 0, pretrained=params.source == "hub")
    _check_outputs(network, train)
    if params.source == "file":
        assert params.weights
        origin["sha256"] = load_foreign_weights(network.body, params.weights, params.sha256)
    elif params.source == "train":
        assert params.training
        fit(network, train, params.training, f"train {params.architecture}", _checkpoint(params))
        # The weights depend on the processor, too: another one's differ in their last digits.
        device = training_device(params.training)
        trained_on = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        origin |= {
            "images": len(train),
            "epochs": params.training.epochs,
            "trained_on": f"{trained_on}, torch {torch.__version__}",
        }
    return network, origin


def _checkpoint(params: Network) -> Path:
    """Where an unfinished training of just this network on just these images is kept."""
    inputs = [
        params.model_dump(),
        read_manifest(DATASET).md5,
        code_digest("laq.network"),
    ]
    return project_root() / ".laq" / "training" / f"{digest(inputs)}.pt"


def _design(params: Network, train: ImageSet) -> NetworkDesign:
    mean, std = params.mean, params.std
    if mean is None or std is None:
        mean, std = _pixel_statistics(train)
    return NetworkDesign(
        params.architecture, len(train.class_names), params.input_size, mean, std, train.preprocessing
    )


def _pixel_statistics(data: ImageSet) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each colour, of pixels in 0..1, to 4 digits."""
    counts = torch.zeros(3, 256, dtype=torch.int64)  # of each value, which are exact however many there are
    for images in data.batches(_COUNTED):
        for colour, pixels in enumerate(images.transpose(0, 1)):
            counts[colour] += pixels.flatten().bincount(minlength=256)
    values, n = torch.arange(256, dtype=torch.float64) / 255, counts[0].sum()
    means = (counts * values).sum(1) / n
    deviations = ((counts * (values - means[:, None]).square()).sum(1) / (n - 1)).sqrt()
    red, green, blue = (
        (round(m, 4), round(s, 4)) for m, s in zip(means.tolist(), deviations.tolist(), strict=True)
    )
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


def _check_outputs(network: Classifier, data: ImageSet) -> None:
    """Check that the network takes the images and has an output for each class."""
    design = network.design
    try:
        found = predict(network, data.take(torch.tensor([0]))).shape[1]
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise LaqError(
            f"network: {design.architecture} cannot take images of {design.input_size} pixels a side "
            f"(network.input_size): {reason}"
        ) from error
    if found != len(data.class_names):
        raise LaqError(
            f"network.architecture: {design.architecture} has {found} outputs, the dataset "
            f"{len(data.class_names)} classes"
        )
