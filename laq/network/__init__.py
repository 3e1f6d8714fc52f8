"""Stage ``network``: the network under study, trained here or from elsewhere, and its scores."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from laq.architectures import Classifier, NetworkDesign, build, file_of, make_body, put_rows, usual_of
from laq.architectures.hub_errors import first_line
from laq.architectures.registry import no_statistics
from laq.dataset.images import ImageSet, read_images, read_manifest
from laq.errors import LaqError, within
from laq.files import digest, project_root, replacing_folder, write_json
from laq.imports import code_digest
from laq.network.checkpoints import load_matching, renamed
from laq.network.evaluation import Scores, collecting_features, evaluate, predict, score
from laq.network.outputs import check_order, find_rows
from laq.network.training import fit, trainer
from laq.network.transfer import adapt_to_classes
from laq.network.weights import (
    check_sha256,
    load_network,
    load_tensors,
    read_design,
    read_foreign_weights,
    save_tensors,
)
from laq.paths import DATASET, DESIGN, WEIGHTS
from laq.paths import NETWORK as FOLDER
from laq.sections.network import Network

_COUNTED: Final = 100  # images whose pixels are counted at once
_JUDGED: Final = 2000  # images on which the order of foreign outputs is judged

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
    splits = read_manifest(DATASET).images
    validation = read_images(DATASET, "validation") if "validation" in splits else None
    network, origin = make_network(params, train, validation)
    scores = evaluate(network, test, range(len(test.class_names)))
    with replacing_folder(FOLDER) as folder:
        save_tensors(folder / WEIGHTS, network.state_dict())
        measured = {
            "test_top1_percent": scores.top1_all,
            "test_balanced_top1_percent": scores.balanced_top1_all,
            "test_top5_percent": scores.top5_all,
        }
        design = network.design.beside(folder, project_root())
        record = {"design": design.to_json(), "origin": origin}
        write_json(folder / DESIGN, {**record, **measured})
    _checkpoint(params).unlink(missing_ok=True)


def make_network(
    params: Network, train: ImageSet, validation: ImageSet | None = None
) -> tuple[Classifier, dict[str, Any]]:
    """Build the network and give it its weights; also returns where these came from.

    Raises:
        LaqError: it cannot be had, does not take the images, or has no output for a class.
    """
    if params.source == "train":
        return _trained_here(params, train)
    network, origin = foreign_network(params, train)
    own = outputs_of(network, train)
    if params.transfer is not None:
        network = _with_outputs(network, own, [n % own for n in range(len(train.class_names))])
        checkpoint = _checkpoint(params) if params.transfer.training else None
        return network, origin | adapt_to_classes(network, train, validation, params.transfer, checkpoint)
    known = usual_of(params.architecture).output_names if params.source == "pretrained" else ()
    rows = find_rows(params.outputs, train.class_names, own, known)
    if rows != tuple(range(own)):
        network = _with_outputs(network, own, rows)
        origin["outputs"] = list(rows)
    some = train.sample(_JUDGED, torch.Generator().manual_seed(0))
    check_order(predict(network, some), some.labels, train.class_names)
    return network, origin


def _trained_here(params: Network, train: ImageSet) -> tuple[Classifier, dict[str, Any]]:
    assert params.training
    network = build(_design(params, train), params.training.seed)
    found, classes = outputs_of(network, train), len(train.class_names)
    if found != classes:
        raise LaqError(
            f"network.architecture: {params.architecture} has {found} outputs, the dataset {classes} classes"
        )
    with within("network.training"):
        fit(network, train, params.training, f"train {params.architecture}", _checkpoint(params))
    origin = {"source": params.source, "images": len(train), "epochs": params.training.epochs}
    return network, origin | {"trained_on": trainer(params.training)}


def foreign_network(params: Network, data: ImageSet) -> tuple[Classifier, dict[str, Any]]:
    """The network as it comes from elsewhere, with all its outputs, and where its weights come from.

    Raises:
        LaqError: it cannot be had.
    """
    design = _design(params, data)
    origin: dict[str, Any] = {"source": params.source}
    if params.source == "pretrained":
        # Before code in it runs.
        if (file := file_of(params.architecture)) is not None and (project_root() / file).is_file():
            origin["sha256"] = check_sha256(file, params.sha256)
        body = make_body(params.architecture, params.arguments, pretrained=True)
        return Classifier(design, body).eval(), origin
    assert params.weights
    state, origin["sha256"] = read_foreign_weights(params.weights, params.sha256)
    network = build(design)
    # A checkpoint may have been made for other classes, as many as its head has rows.
    state = renamed(state, network.body.state_dict())
    if (outputs := _rows_of_head(network.body, state)) not in {None, design.classes}:
        body = make_body(params.architecture, params.arguments, outputs)
        network = Classifier(design, body).eval()
    load_matching(network.body, state, params.weights)
    return network, origin


def _rows_of_head(body: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """How many outputs the head has that a checkpoint holds, if it holds one."""
    names = [name for name, module in body.named_modules() if isinstance(module, nn.Linear)]
    weight = state.get(f"{names[-1]}.weight") if names else None
    return None if weight is None else len(weight)


def _with_outputs(network: Classifier, own: int, rows: Sequence[int]) -> Classifier:
    """The network with fewer outputs, or more, than its architecture has: those at ``rows`` of its own."""
    design = replace(network.design, own_outputs=own)
    return Classifier(design, put_rows(network.body, rows, own)).eval()


def _checkpoint(params: Network) -> Path:
    """Where an unfinished training of just this network on just these images is kept."""
    inputs = [
        params.model_dump(),
        read_manifest(DATASET).md5,
        code_digest("laq.network"),
    ]
    return project_root() / ".laq" / "training" / f"{digest(inputs)}.pt"


def _design(params: Network, train: ImageSet) -> NetworkDesign:
    size, mean, std = params.input_size, params.mean, params.std
    if params.source == "pretrained":
        usual = usual_of(params.architecture)
        size, mean, std = size or usual.input_size, mean or usual.mean, std or usual.std
        if mean is None:
            raise no_statistics("network", params.architecture)
    if mean is None or std is None:
        mean, std = _pixel_statistics(train)
    return NetworkDesign(
        params.architecture,
        len(train.class_names),
        size or train.preprocessing.size,
        mean,
        std,
        train.preprocessing,
        params.arguments,
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


def outputs_of(network: Classifier, data: ImageSet) -> int:
    """How many outputs the network has, which takes the images.

    Raises:
        LaqError: it does not take them, or its outputs are not finite, or no row for each image.
    """
    design = network.design
    try:
        with torch.inference_mode():
            outputs = network(data.take(torch.arange(min(2, len(data)))).images)
    except Exception as error:  # whatever a forward raises
        raise LaqError(
            f"network: {design.architecture} cannot take images of {design.input_size} pixels a side "
            f"(network.input_size): {first_line(error)}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        found = f"a tensor of {outputs.ndim} axes" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise LaqError(f"network: {design.architecture} returns {found}; must be logits, (images, outputs)")
    if not outputs.isfinite().all():
        raise LaqError(f"network: {design.architecture} has outputs that are not finite on training images")
    return outputs.shape[1]
