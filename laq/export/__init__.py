"""Command ``export``: writes a network for a subset as an ONNX file, and says what it is worth."""

from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from laq.dataset.images import ImageSet, read_images, read_manifest
from laq.errors import LaqError
from laq.export.latency import Latency, latency
from laq.export.made import MadeNetworks, make
from laq.export.scores import RuntimeScores, scores
from laq.files import replacing_file
from laq.git import commit
from laq.params import Params
from laq.paths import DATASET
from laq.quantization import QuantizationError, export_onnx
from laq.quantization.files.onnx import most_bits
from laq.run import About, write_about
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
        try:
            export_onnx(original, made.original, images.images[:1])
            export_onnx(path, made.quantized, images.images[:1], asked.storage, vnni=asked.vnni)
        except QuantizationError as error:
            raise LaqError(f"export: {error}") from error
        write_about(path, _about(made, subset, images, asked))
        sizes = path.stat().st_size, original.stat().st_size
        measured = scores(path, made, images, vnni=asked.vnni)
        taken = latency(path, original, images.images[:1].numpy(), threads)
    return "\n".join([_size(out, sizes, made, subset), *_bits(made, asked), *_scored(measured), _time(taken)])


def _about(made: MadeNetworks, subset: Subset, images: ImageSet, asked: Export) -> About:
    design, code = made.original.design, commit()
    changed = " with uncommitted changes" if code["dirty"] else ""
    return About(
        classes=tuple(images.class_names[number] for number in made.numbers),
        preprocessing=images.preprocessing,
        input_size=design.input_size,
        mean=design.mean,
        std=design.std,
        mean_bits=made.quantized.mean_bits,
        recipe=asdict(made.quantized.recipe),
        storage=_storage(asked),
        vnni=asked.vnni,
        dataset=read_manifest(DATASET).name,
        subset=subset.name,
        commit=f"{code['commit']}{changed}" if code["commit"] else "",
        version=version("laq"),
    )


def _storage(asked: Export) -> str:
    """What ``auto`` stands for in ``export_onnx``."""
    if asked.storage != "auto":
        return asked.storage
    return "int4" if asked.activations is None else "int8"


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
        yield f"  {found.changed} images get another class than in the simulation: {found.reason}"


def _time(taken: Latency) -> str:
    ms, faster = (
        (f"{middle:.2f} ({low:.2f} to {high:.2f})")
        for low, middle, high in (taken.milliseconds, taken.speedup)
    )
    return (
        f"{ms} ms for a picture, {faster} times as fast as the float network's file in the same runtime; "
        f"medians and quartiles of {taken.runs} runs in turns, {taken.threads} "
        f"thread{'s' if taken.threads > 1 else ''}, {taken.processor}"
    )
