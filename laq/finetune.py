"""Stage ``finetune``: for each subset, the network trained further on its classes alone."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from laq.cache import cached
from laq.dataset.images import read_images, read_manifest
from laq.errors import LaqError, within
from laq.files import md5, replacing_folder
from laq.imports import code_digest
from laq.machine import processor
from laq.network.training import fit
from laq.network.weights import load_network, read_design, save_tensors
from laq.parallel import Workers, run_all
from laq.paths import DATASET, NETWORK, WEIGHTS, finetuned_weights
from laq.paths import FINETUNE as FOLDER
from laq.progress import progress
from laq.sections.network import Training
from laq.subsets.subset import Subset, read_subsets


def run(params: Training, workers: Workers, *, wanted: bool) -> None:
    """Write the weights of each subset's network, ``<subset>.safetensors``; none unless they are ``wanted``.

    Raises:
        LaqError: training failed for some; the others are kept.
    """
    made = finetune(read_subsets() if wanted else [], params, workers)
    with replacing_folder(FOLDER) as folder:
        for subset, weights in made.items():
            shutil.copyfile(weights, finetuned_weights(folder, subset.name))


def finetune(subsets: Sequence[Subset], params: Training, workers: Workers) -> dict[Subset, Path]:
    """Fine-tune for each subset what is not yet; returns where the weights lie."""
    made: dict[Subset, Path] = {}
    with progress(None, "finetune", total=len(subsets), unit="subset") as bar:
        for done in run_all(partial(_finetuned, params), subsets, workers):
            if done.result is None:
                raise LaqError(f"{done.failure} (fine-tuning for {done.item.name})")
            made[done.item] = done.result
            bar.update()
    return {subset: made[subset] for subset in subsets}


def _finetuned(params: Training, subset: Subset) -> Path:
    """The fine-tuned weights, from an earlier run if nothing they depend on has changed."""

    def fill(folder: Path) -> None:
        network = load_network()
        images = read_images(DATASET, "train").select(subset.classes)
        with within("finetune"):
            fit(network, images, params)
        save_tensors(folder / WEIGHTS, network.state_dict())

    inputs = {
        "classes": sorted(subset.classes),
        "dataset": read_manifest(DATASET).md5,
        "network": md5(NETWORK / WEIGHTS),
        "design": read_design().to_json(),
        "params": params.model_dump(),
        "code": code_digest("laq.finetune"),
        "processor": processor(),  # on which the last digits of a training depend
    }
    return cached("finetune", inputs, fill) / WEIGHTS
