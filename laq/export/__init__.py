"""Command ``export``: writes a network for a subset as an ONNX file, and says what it is worth."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from laq.dataset.images import read_images
from laq.errors import LaqError
from laq.export.file import write_file, write_float_file
from laq.export.latency import latency
from laq.export.restricted import RestrictedNetworks, restrict
from laq.export.scores import RuntimeScores, scores
from laq.files import replacing_file
from laq.params import Params
from laq.paths import DATASET
from laq.quantization import QuantizationError
from laq.quantization.files.onnx import most_bits, multiplied_in_float, onnx_tools
from laq.run.runtime import find_runtime
from laq.sections.commands import Export
from laq.subsets.subset import Subset

_NOTICED: Final = 0.1  # points
Line = tuple[str, str]  # what it is about, and what there is to say


def check(out: Path) -> None:
    """See that the packages are there and that ``out`` may be a file, before what takes long.

    Raises:
        LaqError: a package is missing, or ``out`` is a folder.
    """
    if out.is_dir():
        raise LaqError(f"--out: found the folder {out}; must be a file, such as {out / 'network.onnx'}")
    try:
        onnx_tools()
    except QuantizationError as error:
        raise LaqError(str(error)) from error
    find_runtime()


def run(params: Params, subset: Subset, asked: Export, out: Path, threads: int) -> str:
    """Quantize for the subset, write the file, score it on test images, and time it beside the float one.

    Raises:
        LaqError: the network cannot be quantized or exported so, or onnxruntime is missing.
    """
    networks = restrict(params.study, subset, asked)
    images = read_images(DATASET, "test").select(subset.classes)
    with replacing_file(out) as path, TemporaryDirectory() as folder:
        original = Path(folder) / "float.onnx"
        write_float_file(original, networks.original)
        write_file(path, networks.quantized, subset, asked)
        sizes = path.stat().st_size, original.stat().st_size
        measured = scores(path, networks, images, vnni=asked.vnni)
        taken = latency(path, images.images[:1].numpy(), threads, original)
    told = [
        ("file", f"{out}, {sizes[0] / 1024:.1f} KiB; in float {sizes[1] / 1024:.1f} KiB"),
        ("classes", ", ".join(subset.names_in_order)),
        *_bits(networks, asked),
        *_scored(measured),
        ("time", taken.figures),
        ("", taken.conditions),
    ]
    return "\n".join(f"{name:<10} {text}" for name, text in told)


def _bits(networks: RestrictedNetworks, asked: Export) -> Iterator[Line]:
    """The lines on bits, and on what keeps its weights or stays float."""
    result = networks.quantized
    recipe = result.recipe
    points = recipe.activations
    widths = sorted(set(points.values())) if isinstance(points, dict) else [points]
    activations = "float" if points is None else f"of {' and '.join(map(str, widths))}"
    yield "bits", f"weights of {result.mean_bits:.3g} by {recipe.method}, activations {activations}"
    if networks.capped:
        most = most_bits(recipe.alphabet)
        yield "", f"asked for {asked.bits}; a weight gets {most} bits at most, because more may overflow on"
        yield "", "processors without VNNI, which add products in 16 bits; --vnni keeps them"
    if recipe.activations is not None:
        floats = [*result.on_floats, *multiplied_in_float(result, asked.storage)]
        yield "on floats", ", ".join(floats) or "nothing"
    if result.not_quantized:
        yield "kept", ", ".join(f"{entry.name} ({entry.reason})" for entry in result.not_quantized)


def _scored(found: RuntimeScores) -> Iterator[Line]:
    """The lines on accuracy, as the runtime computes it."""
    for name, score in (("top-1", found.top1), ("balanced", found.balanced)):
        if score is not None:
            others = f"{score.simulated:.2f} % in torch's simulation, {score.original:.2f} % in float"
            yield name, f"{score.file:.2f} % as onnxruntime computes it, {others}"
    yield "", f"on {found.images} test images of these classes"
    if abs(found.top1.file - found.top1.simulated) > _NOTICED:
        images = "1 image gets" if found.changed == 1 else f"{found.changed} images get"
        yield "", f"{images} another class than in the simulation:"
        yield "", found.reason
