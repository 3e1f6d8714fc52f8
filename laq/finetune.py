"""Stage ``finetune``: for each subset, the network trained further on its classes alone."""

import shutil
from pathlib import Path

from laq.cache import cached, code_digest
from laq.dataset import FOLDER as DATASET
from laq.dataset import ImageSet, read_images, read_manifest
from laq.files import md5, replacing_folder
from laq.network import FOLDER as NETWORK
from laq.network import WEIGHTS, fit, load_network, read_design, save_tensors
from laq.params import Training
from laq.subsets import Subset, read_subsets

FOLDER = Path("data/finetune")


def run(params: Training) -> None:
    """Write the weights of each subset's network, ``<subset>.safetensors``."""
    images, subsets = read_images(DATASET, "train"), read_subsets()
    with replacing_folder(FOLDER) as folder:
        for place, subset in enumerate(subsets, 1):
            title = f"finetune {place}/{len(subsets)} {subset.name}"
            shutil.copyfile(_finetuned(subset, images, params, title), weights_of(folder, subset))


def weights_of(folder: Path, subset: Subset) -> Path:
    """Where the weights of the subset's network lie."""
    return folder / f"{subset.name}.safetensors"


def _finetuned(subset: Subset, images: ImageSet, params: Training, title: str) -> Path:
    """The fine-tuned weights, from an earlier run if nothing they depend on has changed."""

    def fill(folder: Path) -> None:
        network = load_network()
        fit(network, images.select(subset.classes), params, title)
        save_tensors(folder / WEIGHTS, network.state_dict())

    inputs = {
        "classes": sorted(subset.classes),
        "dataset": read_manifest(DATASET)["md5"],
        "network": md5(NETWORK / WEIGHTS),
        "design": read_design().to_json(),
        "params": params.model_dump(),
        "code": code_digest("dataset", "network", "finetune"),
    }
    return cached("finetune", inputs, fill) / WEIGHTS
