"""Measures the time to log a cell of a study, with its run and two networks, in each kind of store.

It prints seconds per cell beside the time that measuring the cell takes, as a Markdown table::

    python benchmarks/tracking.py
    python benchmarks/tracking.py --cells 32 --store postgresql+psycopg2://laq:secret@127.0.0.1/laq

By default it measures sqlite, and `mlflow server` on loopback with sqlite behind it. In stores that --store
names it creates an experiment.
"""

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import pandas as pd
import torch

from laq.dataset import ImageSet
from laq.files import digest
from laq.network import NetworkDesign, build, evaluate
from laq.quantization import QuantizedNetwork, Recipe, quantize, save
from laq.report.rendering import markdown_table, number
from laq.track.deliver import deliver
from laq.track.run_specs import Input, ModelSpec, ResultRuns, RunSpec
from laq.track.store import Store

_DESIGN: Final = NetworkDesign("resnet20", 100, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
_CLASSES: Final = {number: f"class {number}" for number in range(10)}
_VARIANTS: Final = ("quantized", "finetuned_quantized")
_MEASURES: Final = 5  # metrics of a variant, as many as the run of a network has


@click.command()
@click.option("--cells", type=click.IntRange(1), default=16, show_default=True)
@click.option("--store", "stores", multiple=True, metavar="URI", help="Measure in this store too.")
def main(cells: int, stores: tuple[str, ...]) -> None:
    """Measure the stores and print the table."""
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        packed, own = measure_cell(scratch)
        measured = [("sqlite", measure_store(f"sqlite:///{scratch / 'mlflow.db'}", packed, cells))]
        with mlflow_server(scratch) as uri:
            measured.append(("server over HTTP, sqlite behind it", measure_store(uri, packed, cells)))
        measured += [(uri.partition(":")[0], measure_store(uri, packed, cells)) for uri in stores]
    table = pd.DataFrame(
        {
            "store": name,
            "seconds per cell": f"{seconds:.3f}",
            "% of the time to measure the cell": f"{100 * seconds / own:.1f}",
            "KiB per network beside its file": number(beside / 1024, ".1f"),
        }
        for name, (seconds, beside) in measured
    )
    click.echo(markdown_table(table))
    click.echo(
        f"\nMeasuring the cell (both networks quantized by GPFQ at 4 bits, and scored) takes {own:.2f} s."
    )


def measure_cell(folder: Path) -> tuple[Path, float]:
    """A packed network, and the seconds to quantize both variants of a cell on 256 images and score them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    test = ImageSet(images, torch.arange(1000) % 10, tuple(map(str, range(100))))

    def cell() -> QuantizedNetwork:
        for _ in _VARIANTS:
            made = quantize(build(_DESIGN), images[:256], Recipe(bits=4, method="gpfq"))
            evaluate(made.network, test, range(10))
        return made

    cell()  # compiles the kernels
    seconds, made = timed(cell)
    save(folder / "packed.safetensors", made)
    return folder / "packed.safetensors", seconds


def measure_store(uri: str, packed: Path, cells: int) -> tuple[float, float]:
    """Seconds per cell, and bytes per network beside its packed file (NaN if artifacts are elsewhere)."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    store = Store()
    deliver(store, tree(packed, 1))  # does what a process does only once
    after, _ = timed(lambda: deliver(store, tree(packed, 0)))
    seconds, done = timed(lambda: deliver(store, tree(packed, cells)))
    place = store.client.get_run(next(iter(done.ids.values()))).info.artifact_uri
    models = Path(place.removeprefix("file://")).parents[1] / "models"
    found = [file.stat().st_size for file in models.rglob("*") if file.is_file()] if models.is_dir() else []
    count = len(list(models.iterdir())) if found else 0
    return (seconds - after) / cells, sum(found) / count - packed.stat().st_size if count else math.nan


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that ``work`` takes, and its result."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def tree(packed: Path, cells: int) -> ResultRuns:
    """The runs of a new study with one subset and so many cells."""
    root = RunSpec(digest(time.time_ns()), "bench", description="# A study")
    above = RunSpec(digest([root.key, 0]), "random-1", root.key)
    below = [_cell(packed, above, number) for number in range(cells)]
    return ResultRuns("laq-bench", [root, above, *below], champion_bytes=1e6)


def _cell(packed: Path, above: RunSpec, number: int) -> RunSpec:
    """The run of a cell, with as many values as a study's cell logs."""
    numbers = [float(value) for value in range(22)]
    return RunSpec(
        key=digest([above.key, "cell", number]),
        name=f"random-1, gpfq, {number} bits",
        parent=above.key,
        params={f"setting_{i}": str(i) for i in range(22)},
        metrics={f"{v}/measure_{i}": float(i) for v in _VARIANTS for i in range(_MEASURES)},
        series={f"layers/{name}": dict(enumerate(numbers)) for name in ("bits", "error", "sparsity")},
        tags={f"laq.tag_{i}": str(i) for i in range(12)},
        inputs=[Input(name, digest(name)[:32], name, name) for name in ("images", "network", "subsets")],
        documents={"layers.json": numbers, "bits.json": numbers},
        models=[_network(packed, variant, number) for variant in _VARIANTS],
        description="| a | table |\n" * 40,
    )


def _network(packed: Path, variant: str, number: int) -> ModelSpec:
    return ModelSpec(
        name=variant,
        weights=packed,
        design=_DESIGN.to_json(),
        classes=_CLASSES,
        examples=("", ""),
        params={"subset": "random-1", "method": "gpfq", "bits": "4"},
        metrics={"top1": float(number), "size_kib": 98.0},
        ranking={"top1_choosing_percent": float(number), "size_bytes": 1e5},
    )


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run an MLflow server on loopback; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "server",
        "--port",
        str(port),
        "--workers",
        "1",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None:
                raise click.ClickException((folder / "server.log").read_text(encoding="utf-8"))
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


if __name__ == "__main__":
    main()
