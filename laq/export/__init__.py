"""Command ``export``: writes a network for a subset as an ONNX file, and says what it is worth."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from laq.dataset.images import read_images
from laq.export.file import write_file, write_float_file
from laq.export.latency import latency
from laq.export.made import MadeNetworks, make
from laq.export.scores import RuntimeScores, scores
from laq.files import replacing_file
from laq.params import Params
from laq.paths import DATASET
from laq.quantization.files.onnx import most_bits
from laq.sections.commands import Export
from laq.subsets.subset import Subset

_NOTICED: Final = 0.1  # points


def run(params: Params, subset: Subset, asked: Export, out: Path, threads: int) -> str:
    """Quantize for the subset, write the file, score it on test images, and time it beside the float one.

    Raises:
        LaqError: the network cannot be quantized or exported so, or onnxruntime is missing.
    """
    made = make(params.study, subset, asked)
    images = read_images(DATASET, "test").select(subset.classes)
    with replacing_file(out) as path, TemporaryDirectory() as folder:
        original = Path(folder) / "float.onnx"
        write_float_file(original, made.original)
        write_file(path, made.quantized, subset, asked)
        sizes = path.stat().st_size, original.stat().st_size
        measured = scores(path, made, images, vnni=asked.vnni)
        taken = latency(path, images.images[:1].numpy(), threads, original)
    return "\n".join([_size(out, sizes, made, subset), *_bits(made, asked), *_scored(measured), str(taken)])


def _size(out: Path, sizes: tuple[int, int], made: MadeNetworks, subset: Subset) -> str:
    own, whole = (size / 1024 for size in sizes)
    return (
        f"{out}: {own:.1f} KiB, the float network's file {whole:.1f} KiB; "
        f"{len(made.numbers)} classes: {', '.join(subset.class_names)}"
    )


def _bits(made: MadeNetworks, asked: Export) -> Iterator[str]:
    """The lines on bits, and on what stays float."""
    result = made.quantized
    recipe = result.recipe
    activations = "float" if recipe.activations is None else f"of {recipe.activations} bits"
    yield f"weights of {result.mean_bits:.3g} bits by {recipe.method}, activations {activations}"
    if made.capped:
        most = most_bits(recipe.alphabet)
        yield (
            f"  {asked.bits} bits were asked for: the method chose codes of {most} bits at most, because "
            "processors without VNNI add products in 16 bits, which larger ones overflow; --vnni keeps them"
        )
    if recipe.activations is not None:
        yield f"on floats: {', '.join(result.on_floats) or 'nothing'}"
    if result.not_quantized:
        kept = ", ".join(f"{entry.name} ({entry.reason})" for entry in result.not_quantized)
        yield f"not quantized: {kept}"


def _scored(found: RuntimeScores) -> Iterator[str]:
    yield (
        f"top-1 on {found.images} test images, as onnxruntime computes it: {found.file:.2f} %; torch's "
        f"simulation {found.simulated:.2f} %, the float network {found.original:.2f} %"
    )
    if abs(found.file - found.simulated) > _NOTICED:
        images = "1 image gets" if found.changed == 1 else f"{found.changed} images get"
        yield f"  {images} another class than in the simulation: {found.reason}"
