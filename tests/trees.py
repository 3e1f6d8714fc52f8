"""Trees of runs like a study's, of one small network; as a program: deliver those that were saved."""

import base64
import io
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from laq.errors import LaqError
from laq.files import digest
from laq.network import NetworkDesign, build
from laq.params import load_params
from laq.quantization import Recipe, quantize, save
from laq.subsets.subset import Subset
from laq.track.deliver import deliver
from laq.track.results import Provenance, Results
from laq.track.run_specs import Input, ModelSpec, ResultRuns, RunSpec
from laq.track.store import Store
from tests.conftest import ROOT

DESIGN = NetworkDesign("resnet20", 5, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CLASSES = {1: "circle", 3: "square"}
LAYERS = 22


@cache
def packed_network(folder: Path, bits: int = 3) -> Path:
    """A ResNet-20 with random weights, rounded and packed."""
    path = folder / f"{bits}bit.safetensors"
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    save(path, quantize(build(DESIGN, seed=1), images, Recipe(bits=bits, method="rtn")))
    return path


def png(pixels: torch.Tensor) -> bytes:
    """Pixels (3, h, w) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def example() -> str:
    """A picture as a server takes it."""
    pixels = torch.tensor([200, 30, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)
    return base64.b64encode(png(pixels)).decode()


def network(weights: Path, name: str = "quantized", **changes: Any) -> ModelSpec:
    """The model-to-be of a run; ``changes`` are to ``subset``, ``score``, ``size`` and ``classes``."""
    return ModelSpec(
        name=name,
        weights=weights,
        design=DESIGN.to_json(),
        classes=changes.get("classes", CLASSES),
        examples=[example()] * 2,
        params={"subset": changes.get("subset", "random-1"), "bits": "3", "method": "gpfq"},
        metrics={"top1": 75.0},
        ranking={
            "top1_choosing_percent": changes.get("score", 80.0),
            "size_bytes": changes.get("size", 9e4),
        },
    )


def make_tree(
    weights: Path, key: str = "result", subsets: int = 1, bits: Sequence[int] = (3,), score: float = 70
) -> ResultRuns:
    """A study's runs: the root, subsets, and a cell with two networks for each bit-width."""
    root = RunSpec(digest(key), key, params={"seed": "0"}, metrics={"top1": 70.0}, description="# A study")
    records = [root]
    for number in range(1, subsets + 1):
        name = f"random-{number}"
        above = RunSpec(digest([key, name]), name, root.key, documents={"subset.json": {"name": name}})
        records += [above, *(_cell(weights, above, b, score) for b in bits)]
    return ResultRuns("laq-test", records, champion_bytes=1e5)


def _cell(weights: Path, above: RunSpec, bits: int, score: float) -> RunSpec:
    names = ("quantized", "finetuned_quantized")
    return RunSpec(
        key=digest([above.key, bits]),
        name=f"{above.name}, {bits} bits",
        parent=above.key,
        params={"bits": str(bits), "subset": above.name, **{f"setting_{i}": str(i) for i in range(15)}},
        metrics={f"{name}/measure_{i}": float(i) for name in names for i in range(12)},
        series={
            f"{name}/layers/{of}": dict.fromkeys(range(LAYERS), 0.5)
            for name in names
            for of in ("bits", "error", "zeros")
        },
        tags={"laq.level": "cell", **{f"laq.tag_{i}": str(i) for i in range(8)}},
        inputs=[Input(of, digest(of)[:32], f"data/{of}", of) for of in ("images", "network", "subsets")],
        documents={
            "layers.json": {name: [{"layer": i, "bits": bits} for i in range(LAYERS)] for name in names}
        },
        models=[network(weights, name, subset=above.name, score=score + bits) for name in names],
        description="| method | bits |\n" * 20,
    )


def mixed_results(weights: Path) -> Results:
    """What was measured for one subset: the float network, and one whose bits differ by layer."""
    same = {"subset": "random-1", "dataset": "glyphs", "network": "resnet20", "seconds": 0.5}
    scores = {"top1_sub_percent": 90.0, "top1_all_percent": 80.0, "drop_sub_points": 1.0, "size_bytes": 9e4}
    network = {"variant": "original", "method": "float", "bits": 32, "mean_bits": 32.0}
    mixed = {"variant": "quantized", "method": "gpfq_l0", "bits": "auto:3", "mean_bits": 2.9}
    rows = [
        {**network, "calibration": "none", "seed": None},
        {**mixed, "calibration": "subset", "seed": 0},
    ]
    rows = [
        {**row, **same, **scores, "levels": None, "compression": 4.0, "cell": row["variant"]} for row in rows
    ]
    provenance = Provenance()
    inputs = (Input("glyphs", "0", "data", "images"),)
    vars(provenance).update({"inputs": inputs, "design": DESIGN.to_json(), "examples": (), "tags": {}})
    subset = Subset("random-1", "random", (1, 2), ("a", "b"), 2.0, 1.0, 1.5, 1.5)
    params = load_params(ROOT / "params.yaml")
    return Results(params, "key", [subset], rows, [], {"quantized": weights}, provenance=provenance)


def deliver_saved(path: str) -> int:
    """Deliver a saved tree, as the command line does."""
    try:
        sent = len(deliver(Store(), ResultRuns.load(Path(path))).sent)
    except LaqError as error:
        sys.stderr.write(f"laq: {error}\n")
        return 2
    sys.stdout.write(f"sent {sent}\n")
    sys.stdout.flush()
    return 0


def at_once(paths: Sequence[str]) -> int:
    """Deliver each by a process of its own, begun when all modules are there; returns the worst end."""
    children = []
    for path in paths:
        children.append(os.fork())
        if not children[-1]:
            os._exit(deliver_saved(path))
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def main() -> int:
    """Deliver the trees that the command line names."""
    return at_once(sys.argv[1:]) if sys.argv[2:] else deliver_saved(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
