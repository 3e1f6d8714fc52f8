"""One cell of the study: a network, a subset, a recipe → what it cost. Kept, and never done twice."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from laq.cache import cached, code_digest
from laq.dataset import FOLDER as DATASET
from laq.dataset import ImageSet, read_images, read_manifest
from laq.errors import LaqError
from laq.files import md5, read_json, write_json
from laq.finetune import FOLDER as FINETUNE
from laq.finetune import weights_of
from laq.network import FOLDER as NETWORK
from laq.network import WEIGHTS, Classifier, Scores, evaluate, load_network, read_design
from laq.params import Study, bits_name
from laq.quantization import (
    QuantizationError,
    QuantizedNetwork,
    Recipe,
    choose_bits,
    float32_bytes,
    layer_names,
    parse_bits,
    quantize,
    save,
)
from laq.subsets import Subset

FLOAT_BITS = 32
SECONDS = "seconds.json"
Base = Literal["original", "finetuned"]
BASES: tuple[Base, ...] = ("original", "finetuned")


@dataclass(frozen=True)
class Cell:
    """What to measure: the network ``base`` on ``subset``, as it is or quantized by ``recipe``.

    ``bits`` are those of the recipe, or say what each layer gets, perhaps for this subset alone.
    """

    subset: Subset
    base: Base
    recipe: Recipe | None
    bits: int | str = FLOAT_BITS

    @property
    def variant(self) -> str:
        """Original, quantized, finetuned or finetuned_quantized."""
        if self.recipe is None:
            return self.base
        return "quantized" if self.base == "original" else "finetuned_quantized"

    @property
    def name(self) -> str:
        """The cell's name among all of a study's."""
        method = "float" if self.recipe is None else f"{self.recipe.method}-{bits_name(self.bits)}"
        return f"{self.subset.name}.{self.variant}.{method}"


def plan(subsets: Sequence[Subset], params: Study) -> list[Cell]:
    """Every cell of the study: per subset both networks as they are, then by bits and method.

    Raises:
        LaqError: the bits are out of range, or two of them would have the same name.
    """
    if len({bits_name(bits) for bits in params.bits}) < len(params.bits):
        raise LaqError(f"study.bits: some of {list(params.bits)} differ in signs alone; name them apart")
    for bits in params.bits:
        try:
            parse_bits(bits)
        except QuantizationError as error:
            raise LaqError(f"study.bits: {error}") from error
    return [cell for subset in subsets for base in BASES for cell in _cells(subset, base, params)]


def _cells(subset: Subset, base: Base, params: Study) -> Iterator[Cell]:
    shared = {f.name: getattr(params, f.name) for f in fields(Recipe) if f.name in Study.model_fields}
    yield Cell(subset, base, None)
    for bits, method in product(params.bits, params.methods):
        known = {"bits": bits} if isinstance(bits, int) else {"bits": Recipe.bits}
        yield Cell(subset, base, Recipe(**{**shared, **known, "method": method}), bits)


def study_code() -> str:
    """The hash of the code that measures."""
    return code_digest("dataset", "network", "quantization", "study")


class Bench:
    """Measures cells on the study's dataset and networks, each loaded once."""

    def __init__(self, params: Study) -> None:
        self.params = params
        self._held: tuple[Path, Classifier] | None = None

    def measure(self, cell: Cell) -> Path:
        """The folder with the cell's ``measurement.json`` and, if quantized, layers and weights."""
        return cached("cells", self.inputs(cell), lambda folder: self._fill(cell, folder))

    def inputs(self, cell: Cell) -> dict[str, Any]:
        """Everything the cell's result depends on."""
        calibration = {} if cell.recipe is None else self.calibration
        return {
            "classes": sorted(cell.subset.classes),
            "dataset": self.dataset,
            "weights": md5(self._weights(cell)),
            "recipe": cell.recipe and asdict(cell.recipe),
            "bits": cell.bits,
            "design": read_design().to_json(),
            "code": study_code(),
            **calibration,
        }

    @property
    def calibration(self) -> dict[str, Any]:
        """How calibration images are drawn."""
        p = self.params
        return {"calibration": p.calibration, "images": p.calibration_images, "seed": p.seed}

    @cached_property
    def dataset(self) -> dict[str, str]:
        """The MD5s of the dataset's files."""
        hashes: dict[str, str] = read_manifest(DATASET)["md5"]
        return hashes

    @cached_property
    def train(self) -> ImageSet:
        """The training images, which calibration draws from."""
        return read_images(DATASET, "train")

    @cached_property
    def test(self) -> ImageSet:
        """The test images, which scores come from."""
        return read_images(DATASET, "test")

    def calibration_images(self, subset: Subset) -> torch.Tensor:
        """The images (n, 3, h, w) that quantization learns from: the subset's, or of all classes."""
        pool = self.train.select(subset.classes) if self.params.calibration == "subset" else self.train
        generator = torch.Generator().manual_seed(self.params.seed)
        return pool.sample(self.params.calibration_images, generator).images

    def network(self, cell: Cell) -> Classifier:
        """The cell's network before quantization."""
        path = self._weights(cell)
        if self._held is None or self._held[0] != path:
            self._held = path, load_network(weights=path)
        return self._held[1]

    def _weights(self, cell: Cell) -> Path:
        return NETWORK / WEIGHTS if cell.base == "original" else weights_of(FINETUNE, cell.subset)

    def _fill(self, cell: Cell, folder: Path) -> None:
        network = self.network(cell)
        if cell.recipe is None:
            outcome = {
                "mean_bits": float(FLOAT_BITS),
                "levels": None,
                "sparsity_percent": 100 * _zeros(network),
                "size_bytes": float32_bytes(network),
                "compression": 1.0,
            }
            scores = evaluate(network, self.test, cell.subset.classes)
        else:
            begin = time.perf_counter()
            result = self._quantize(network, cell, cell.recipe)
            write_json(folder / SECONDS, round(time.perf_counter() - begin, 3))
            outcome = _keep(result, folder, cell.subset)
            scores = evaluate(result.network, self.test, cell.subset.classes)
        write_json(folder / "measurement.json", {**_percent(scores), **outcome})

    def _quantize(self, network: Classifier, cell: Cell, recipe: Recipe) -> QuantizedNetwork:
        images = self.calibration_images(cell.subset)
        try:
            if isinstance(cell.bits, str):
                classes = sorted(cell.subset.classes)
                bits = choose_bits(parse_bits(cell.bits), network, images, recipe, classes)
                recipe = replace(recipe, bits=bits)
            return quantize(network, images, recipe)
        except QuantizationError as error:
            raise LaqError(f"{cell.name}: {error}") from error


def read_measurement(folder: Path) -> dict[str, Any]:
    """The cell's scores and what else was measured of the whole network."""
    measurement: dict[str, Any] = read_json(folder / "measurement.json")
    return measurement


def read_seconds(folder: Path) -> float | None:
    """What quantizing the cell took; nothing for a network that is not quantized."""
    path = folder / SECONDS
    return float(read_json(path)) if path.exists() else None


def read_layers(folder: Path) -> list[dict[str, Any]]:
    """What was measured layer by layer; nothing for a network that is not quantized."""
    path = folder / "layers.json"
    return list(read_json(path)) if path.exists() else []


def _keep(result: QuantizedNetwork, folder: Path, subset: Subset) -> dict[str, Any]:
    """Write the quantized weights and the layers' records; returns the whole network's."""
    classes = [name for _, name in sorted(zip(subset.classes, subset.class_names, strict=True))]
    size = save(folder / WEIGHTS, result, {"classes": classes})
    layers = [
        {
            "layer": layer.name,
            "bits": layer.bits,
            "levels": layer.levels,
            "weights": layer.codes.numel(),
            "sparsity_percent": 100 * layer.sparsity,
            "relative_error": layer.relative_error,
        }
        for layer in result.layers
    ]
    write_json(folder / "layers.json", layers)
    return {
        "mean_bits": result.mean_bits,
        "levels": layers[0]["levels"] if len({layer["levels"] for layer in layers}) == 1 else None,
        "sparsity_percent": 100 * result.sparsity,
        "size_bytes": size,
        "compression": float32_bytes(result.network) / size,
        "relative_error_mean": sum(layer.relative_error for layer in result.layers) / len(layers),
        "relative_error_logits": result.relative_error,
    }


def _percent(scores: Scores) -> dict[str, float]:
    return {f"{name}_percent": value for name, value in asdict(scores).items()}


def _zeros(network: Classifier) -> float:
    weights = [network.get_parameter(f"{name}.weight") for name in layer_names(network)]
    return sum(w.numel() - int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
