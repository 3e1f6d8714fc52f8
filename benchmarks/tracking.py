"""What does it cost to log a cell of a study, its run and its two networks, in each kind of store?

Prints seconds per cell beside the cell's own time, as a Markdown table::

    python benchmarks/tracking.py
    python benchmarks/tracking.py --cells 32 --store postgresql+psycopg2://laq:secret@127.0.0.1/laq

By default: sqlite, and `mlflow server` on loopback with sqlite behind it. Stores that --store names get
an experiment more.
"""

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
import torch

from laq.dataset import ImageSet
from laq.files import digest
from laq.network import NetworkDesign, build, evaluate
from laq.quantization import QuantizedNetwork, Recipe, quantize, save
from laq.report.markdown import line
from laq.track.runs import Input, ModelSpec, ResultRuns, RunSpec
from laq.track.store import Store

_DESIGN: Final = NetworkDesign("resnet20", 100, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
_CLASSES: Final = {number: f"class {number}" for number in range(10)}
_VARIANTS: Final = ("quantized", "finetuned_quantized")
_MEASURES: Final = 13  # of a variant, as a study's cell has


@click.command()
@click.option("--cells", type=click.IntRange(1), default=16, show_default=True)
@click.option("--store", "stores", multiple=True, metavar="URI", help="Measure in this store too.")
def main(cells: int, stores: tuple[str, ...]) -> None:
    """Measure, and print a Markdown table."""
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        packed, own = measure_cell(scratch)
        rows = [
            (
                "sqlite",
                measure_store(f"sqlite:///{scratch / 'mlflow.db'}", packed, cells),
            )
        ]
        with mlflow_server(scratch) as uri:
            rows.append(("server over HTTP, sqlite behind it", measure_store(uri, packed, cells)))
        rows += [(uri.partition(":")[0], measure_store(uri, packed, cells)) for uri in stores]
    click.echo(
        line("store", "seconds per cell", "% of the cell's own time", "KiB per network beside its file")
    )
    click.echo(line(*["---"] * 4))
    for name, (seconds, beside) in rows:
        kept = "" if beside is None else f"{beside / 1024:.1f}"
        click.echo(line(name, f"{seconds:.3f}", f"{100 * seconds / own:.1f}", kept))
    click.echo(f"\nA cell's own time, both networks by GPFQ at 4 bits, and scored: {own:.2f} s")


def measure_cell(folder: Path) -> tuple[Path, float]:
    """The packed network and the seconds of a cell: both variants quantized from 256 images and scored."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    test = ImageSet(images, torch.arange(1000) % 10, tuple(map(str, range(100))))

    def cell() -> QuantizedNetwork:
        for _ in _VARIANTS:
            made = quantize(build(_DESIGN), images[:256], Recipe(bits=4, method="gpfq"))
            evaluate(made.network, test, range(10))
        return made

    cell()  # what is compiled is so now
    seconds, made = timed(cell)
    save(folder / "packed.safetensors", made)
    return folder / "packed.safetensors", seconds


def measure_store(uri: str, packed: Path, cells: int) -> tuple[float, float | None]:
    """Seconds per cell, and bytes per network beside the packed file where artifacts lie on this disk."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    store = Store()
    store.send(tree(packed, 1))  # what is done once in a process is done now
    after, _ = timed(lambda: store.send(tree(packed, 0)))
    seconds, done = timed(lambda: store.send(tree(packed, cells)))
    place = store.client.get_run(next(iter(done.ids.values()))).info.artifact_uri
    models = Path(place.removeprefix("file://")).parents[1] / "models"
    found = [file.stat().st_size for file in models.rglob("*") if file.is_file()] if models.is_dir() else []
    count = len(list(models.iterdir())) if found else 0
    return (seconds - after) / cells, sum(found) / count - packed.stat().st_size if count else None


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds of ``work``, and what it returned."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def tree(packed: Path, cells: int) -> ResultRuns:
    """A study of one subset and so many cells, never seen before."""
    root = RunSpec(digest(time.time_ns()), "bench", description="# A study")
    above = RunSpec(digest([root.key, 0]), "random-1", root.key)
    below = [_cell(packed, above, number) for number in range(cells)]
    return ResultRuns("laq-bench", [root, above, *below], champion_bytes=1e6)


def _cell(packed: Path, above: RunSpec, number: int) -> RunSpec:
    """As much as a study's cell logs."""
    numbers = [float(value) for value in range(22)]
    return RunSpec(
        key=digest([above.key, "cell", number]),
        name=f"random-1, gpfq, {number} bits",
        parent=above.key,
        params={f"setting_{i}": str(i) for i in range(22)},
        metrics={f"{v}/measure_{i}": float(i) for v in _VARIANTS for i in range(_MEASURES)},
        series={f"{v}/layers/{name}": numbers for v in _VARIANTS for name in ("bits", "error", "sparsity")},
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
        metrics={"top1_sub_percent": float(number), "size_bytes": 1e5},
    )


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of a server on loopback."""
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
        while not _answers(port):
            if server.poll() is not None:
                raise click.ClickException((folder / "server.log").read_text(encoding="utf-8"))
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
