"""Writes a network, cut to a subset's classes, as an ONNX file that says what it is."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from laq.architectures import Classifier, NetworkDesign
from laq.dataset.images import read_manifest
from laq.errors import LaqError
from laq.git import commit
from laq.network.weights import read_design
from laq.paths import DATASET
from laq.quantization import QuantizationError, QuantizedNetwork, export_onnx
from laq.quantization.files.onnx import storage_of
from laq.run import About, write_about
from laq.sections.commands import Export
from laq.subsets.subset import Subset


def write_file(path: Path, result: QuantizedNetwork, subset: Subset, asked: Export) -> None:
    """Write the quantized network, whose outputs are the subset's classes in the order of their numbers.

    Its design is the study's. Of ``asked``, storage and VNNI count.

    Raises:
        LaqError: the network cannot be exported so, or onnx is missing.
    """
    design = read_design()
    try:
        export_onnx(path, result, _example(design), asked.storage, vnni=asked.vnni)
    except QuantizationError as error:
        raise LaqError(f"export: {error}") from error
    write_about(path, _about(design, result, subset, asked))


def write_float_file(path: Path, network: Classifier) -> None:
    """Write a float network, to be measured beside.

    Raises:
        LaqError: it cannot be exported, or onnx is missing.
    """
    try:
        export_onnx(path, network, _example(network.design))
    except QuantizationError as error:
        raise LaqError(f"export: {error}") from error


def _example(design: NetworkDesign) -> torch.Tensor:
    side = design.preprocessing.size
    return torch.zeros(1, 3, side, side, dtype=torch.uint8)


def _about(design: NetworkDesign, result: QuantizedNetwork, subset: Subset, asked: Export) -> About:
    code = commit()
    changed = " with uncommitted changes" if code["dirty"] else ""
    return About(
        classes=subset.names_in_order,
        preprocessing=design.preprocessing,
        input_size=design.input_size,
        mean=design.mean,
        std=design.std,
        mean_bits=result.mean_bits,
        recipe=asdict(result.recipe),
        storage=storage_of(asked.storage, rounded=result.recipe.activations is not None),
        vnni=asked.vnni,
        dataset=read_manifest(DATASET).name,
        subset=subset.name,
        commit=f"{code['commit']}{changed}" if code["commit"] else "",
        version=version("laq"),
    )
