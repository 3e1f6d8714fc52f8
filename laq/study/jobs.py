"""How cells are measured: those that share a network and its calibration images together, and each once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Self

import torch

from laq.cache import cached, code_digest, place_of
from laq.dataset import FOLDER as DATASET
from laq.dataset import ImageSet, read_images, read_manifest
from laq.errors import LaqError
from laq.files import md5, read_json, write_json
from laq.finetune import FOLDER as FINETUNE
from laq.finetune import weights_of
from laq.network import FOLDER as NETWORK
from laq.network import WEIGHTS, Classifier, Scores, load_network, predict, read_design, score
from laq.parallel import Workers, run_all
from laq.params import Calibration, Study
from laq.progress import progress
from laq.quantization import (
    QuantizedNetwork,
    Recipe,
    choose_bits_each,
    float32_bytes,
    layer_names,
    parse_bits,
    quantize_each,
    save,
)
from laq.study.cells import FLOAT_BITS, Cell, is_label_aware
from laq.subsets import Subset

SECONDS: Final = "seconds.json"
MEASUREMENT: Final = "measurement.json"
LAYERS: Final = "layers.json"
# Quantizing takes so many times what running the network on the image does; choosing bits for the layers of
# a network takes so many more.
_QUANTIZING: Final = 9
_CHOOSING: Final = 120
_BAR: Final = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
_MOST_NAMED: Final = 5


def study_code() -> str:
    """The hash of the code that a measurement depends on; how networks are trained is not part of it."""
    network = (f"network/{name}" for name in ("evaluation", "resnet", "weights", "zoo"))
    return code_digest("dataset", *network, "quantization", "study/cells", "study/jobs")


@dataclass(frozen=True)
class Job:
    """Cells of one network before quantization and, if they learn from images, of one set of these."""

    cells: tuple[Cell, ...]

    @property
    def networks(self) -> dict[tuple[Recipe | None, int | str], list[Cell]]:
        """The cells of each network to make."""
        made: dict[tuple[Recipe | None, int | str], list[Cell]] = {}
        for cell in self.cells:
            made.setdefault((cell.recipe, cell.bits), []).append(cell)
        return made

    @property
    def classes(self) -> list[int]:
        """Those of all the job's subsets, whose images each network is scored on, once for all."""
        return sorted({number for cell in self.cells for number in cell.subset.classes})


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """The jobs that measure ``cells``."""
    together: dict[Any, list[Cell]] = {}
    for cell in cells:
        owner = _owner(cell)
        images = (cell.calibration, cell.seed, is_label_aware(cell.bits))
        together.setdefault((cell.base, owner and owner.name, cell.recipe is None, images), []).append(cell)
    return [Job(tuple(some)) for some in together.values()]


def _owner(cell: Cell) -> Subset | None:
    """The subset that the cell's network is made for; none if it would be the same for any."""
    own = cell.base == "finetuned" or cell.calibration == "subset" or is_label_aware(cell.bits)
    return cell.subset if own else None


@dataclass(frozen=True)
class Bench:
    """The study's images and networks, as they lie in ``data/``, and how cells are measured on them.

    ``finetuned`` are weights that lie elsewhere, by their subset's name. What it holds is read once, here,
    and goes with it to other processes.
    """

    params: Study
    finetuned: Mapping[str, Path] = field(default_factory=dict)
    code: str = field(default_factory=study_code)
    dataset: Mapping[str, str] = field(default_factory=lambda: read_manifest(DATASET)["md5"])
    design: Mapping[str, Any] = field(default_factory=lambda: read_design().to_json())
    _hashes: dict[Path, str] = field(default_factory=dict, repr=False)

    def folder(self, cell: Cell) -> Path:
        """Where the cell's ``measurement.json`` lies and, if quantized, layers and weights; once measured."""
        return place_of("cells", self.inputs(cell))

    def inputs(self, cell: Cell) -> dict[str, Any]:
        """Everything the cell's result depends on."""
        learned = {} if cell.recipe is None else {
            "calibration": _calibration(cell),
            "images": self.params.calibration_images,
            "networks": self.params.keep_networks,
        }  # fmt: skip
        return {
            "classes": sorted(cell.subset.classes),
            "dataset": self.dataset,
            "weights": self._hash(self.weights(cell)),
            "recipe": cell.recipe and asdict(cell.recipe),
            "bits": cell.bits,
            "design": self.design,
            "code": self.code,
            **learned,
        }

    def weights(self, cell: Cell) -> Path:
        """Those of the cell's network before quantization."""
        if cell.base == "original":
            return NETWORK / WEIGHTS
        return self.finetuned.get(cell.subset.name) or weights_of(FINETUNE, cell.subset)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = md5(path)
        return self._hashes[path]

    def images(self, split: str) -> ImageSet:
        """The training images, which calibration draws from, or the test images, which are scored."""
        return _images(split, self.dataset[split])

    def calibration_images(self, cell: Cell) -> torch.Tensor:
        """The images (n, 3, h, w) that quantization learns from, or is measured on at least."""
        train = self.images("train")
        pool = train.select(cell.subset.classes) if _calibration(cell) == "subset" else train
        generator = torch.Generator().manual_seed(cell.recipe.seed if cell.recipe else 0)
        return pool.sample(self.params.calibration_images, generator).images

    def cost(self, job: Job) -> float:
        """How long the job takes, in runs of the network on an image."""
        scored = len(self.images("test").labels)
        share: float = len(job.classes) / self.design["classes"]
        learned = _QUANTIZING * self.params.calibration_images * (job.cells[0].recipe is not None)
        chosen = _CHOOSING * self.params.calibration_images * is_label_aware(job.cells[0].bits)
        return len(job.networks) * (scored * share + learned + chosen)


def _calibration(cell: Cell) -> Calibration:
    """Whose images a quantization runs on; without learning from them, for its errors alone."""
    return cell.calibration or ("all" if cell.base == "original" else "subset")


@cache
def _images(split: str, hashed: str) -> ImageSet:
    """The dataset's images with this hash, once in a process."""
    images = read_images(DATASET, split)
    if md5(DATASET / split) != hashed:
        raise LaqError(f"{DATASET / split}: changed while it was worked with; run it again")
    return images


def measure_all(cells: Sequence[Cell], bench: Bench, workers: Workers) -> dict[Cell, Path]:
    """Measure what is not yet, and keep each cell as soon as it is done; returns all cells' folders.

    Jobs that fail are tried once more, cell by cell.

    Raises:
        LaqError: cells failed, even alone; the others are kept.
    """
    folders = {cell: bench.folder(cell) for cell in cells}
    missing = [cell for cell, folder in folders.items() if not folder.exists()]
    with _Progress(cells, missing, bench) as bar:
        work = partial(_work, bench, workers, bar)
        failed = work(sorted(jobs_of(missing), key=bench.cost, reverse=True))
        reasons = work([Job((cell,)) for job in failed for cell in job.cells])
    if reasons:
        raise LaqError("\n".join(_told(reasons, len(cells))))
    return folders


class _Progress:
    """A bar of the study's work, of which cells have very different shares; it counts cells beside that."""

    def __init__(self, cells: Sequence[Cell], missing: Sequence[Cell], bench: Bench) -> None:
        # Whole numbers, whose sum is exact: the bar ends at its end.
        self.shares: dict[Cell, int] = {}
        for job in jobs_of(cells):
            self.shares |= dict.fromkeys(job.cells, round(bench.cost(job) / len(job.cells)))
        kept = set(cells).difference(missing)
        self.measured = len(kept)
        work = {"total": sum(self.shares.values()), "initial": sum(self.shares[cell] for cell in kept)}
        self.bar = progress(None, "study", **work, postfix=self._counted(), bar_format=_BAR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def done(self, job: Job) -> None:
        """The job's cells are measured."""
        self.measured += len(job.cells)
        self.bar.set_postfix_str(self._counted(), refresh=False)
        self.bar.update(sum(self.shares[cell] for cell in job.cells))

    def _counted(self) -> str:
        return f"{self.measured}/{len(self.shares)} cells"


def _work(bench: Bench, workers: Workers, bar: _Progress, jobs: Sequence[Job]) -> dict[Job, str]:
    """Do the jobs; returns those that failed, and why."""
    failures = {}
    for done in run_all(partial(measure, bench), jobs, workers):
        if done.failure:
            failures[done.item] = done.failure
        else:
            bar.done(done.item)
    return failures


def _told(reasons: Mapping[Job, str], cells: int) -> Iterator[str]:
    """Which cells failed and why, in lines."""
    yield f"{len(reasons)} of {cells} cells failed, twice each; the others are kept, so run it again"
    for job, reason in list(reasons.items())[:_MOST_NAMED]:
        yield f"{job.cells[0].name}: {reason}"
    if len(reasons) > _MOST_NAMED:
        yield f"and {len(reasons) - _MOST_NAMED} more"


def measure(bench: Bench, job: Job) -> None:
    """Measure the cells of a job and keep each.

    Raises:
        LaqError: this process has other code than the one that asks.
    """
    if study_code() != bench.code:
        raise LaqError("the worker's laq, or its torch, is another one than here; install the same on both")
    network = load_network(weights=bench.weights(job.cells[0]))
    scored = bench.images("test").select(job.classes)
    for cells, result in _networks(bench, job, network):
        logits = predict(network if result is None else result.network, scored)
        for cell in cells:
            scores = score(logits, scored.labels, cell.subset.classes)
            fill = partial(_fill, cell, scores, result or network, bench.params)
            cached("cells", bench.inputs(cell), fill)


def _networks(
    bench: Bench, job: Job, network: Classifier
) -> Iterator[tuple[list[Cell], QuantizedNetwork | None]]:
    """The job's networks, all quantized in one pass over the images, each with its cells."""
    groups = list(job.networks.values())
    if job.cells[0].recipe is None:
        yield groups[0], None
        return
    images = bench.calibration_images(job.cells[0])
    recipes = _recipes([cells[0] for cells in groups], network, images)
    yield from zip(groups, quantize_each(network, images, recipes), strict=True)


def _recipes(cells: Sequence[Cell], network: Classifier, images: torch.Tensor) -> list[Recipe]:
    """The recipes, the bits of each layer chosen; what alike recipes need for that is measured once."""
    chosen: dict[str, Recipe] = {}
    mixed = [cell for cell in cells if isinstance(cell.bits, str)]
    for recipe in dict.fromkeys(cell.recipe for cell in mixed if cell.recipe):
        alike = [cell for cell in mixed if cell.recipe == recipe]
        precisions = [parse_bits(cell.bits) for cell in alike]
        classes = sorted(alike[0].subset.classes)
        maps = choose_bits_each(precisions, network, images, recipe, classes)
        chosen |= {cell.name: replace(recipe, bits=bits) for cell, bits in zip(alike, maps, strict=True)}
    return [chosen.get(cell.name) or cell.recipe for cell in cells if cell.recipe]


def _fill(
    cell: Cell, scores: Scores, made: QuantizedNetwork | Classifier, params: Study, folder: Path
) -> None:
    """Write what a cell's folder holds."""
    if isinstance(made, QuantizedNetwork):
        write_json(folder / SECONDS, round(sum(layer.seconds for layer in made.layers), 3))
        outcome = _keep(made, folder, cell.subset)
        if not params.keep_networks:
            (folder / WEIGHTS).unlink()
    else:
        outcome = _as_it_is(made)
    percent = {f"{name}_percent": value for name, value in asdict(scores).items()}
    write_json(folder / MEASUREMENT, {**percent, **outcome})


def read_measurement(folder: Path) -> dict[str, Any]:
    """The cell's scores and what else was measured of the whole network."""
    measurement: dict[str, Any] = read_json(folder / MEASUREMENT)
    return measurement


def read_seconds(folder: Path) -> float | None:
    """What choosing the cell's codes took; nothing for a network that is not quantized."""
    path = folder / SECONDS
    return float(read_json(path)) if path.exists() else None


def read_layers(folder: Path) -> list[dict[str, Any]]:
    """What was measured layer by layer; nothing for a network that is not quantized."""
    path = folder / LAYERS
    return list(read_json(path)) if path.exists() else []


def _as_it_is(network: Classifier) -> dict[str, Any]:
    """A network that is not quantized, measured like those that are."""
    weights = [network.get_parameter(f"{name}.weight") for name in layer_names(network)]
    zeros = sum(w.numel() - int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
    return {
        "mean_bits": float(FLOAT_BITS),
        "levels": None,
        "sparsity_percent": 100 * zeros,
        "size_bytes": float32_bytes(network),
        "compression": 1.0,
    }


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
    write_json(folder / LAYERS, layers)
    return {
        "mean_bits": result.mean_bits,
        "levels": layers[0]["levels"] if len({layer["levels"] for layer in layers}) == 1 else None,
        "sparsity_percent": 100 * result.sparsity,
        "size_bytes": size,
        "compression": float32_bytes(result.network) / size,
        "relative_error_mean": sum(layer.relative_error for layer in result.layers) / len(layers),
        "relative_error_logits": result.relative_error,
    }
