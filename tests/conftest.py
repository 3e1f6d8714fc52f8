"""What tests share: a study small enough to run in seconds, and the data beside the project."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from filelock import FileLock
from torch import Tensor, nn

# MLflow takes seconds to import, which most tests do without.
if TYPE_CHECKING:
    from laq.track.store import Store

ROOT = Path(__file__).parents[1]
pytest_plugins = ("tests.project",)
SHARED = Path(os.environ.get("LAQ_SHARED", ROOT.parent / "shared"))
CIFAR100 = SHARED / "cifar100" / "cifar-100-python.tar.xz"
CLOTHING = Path(os.environ.get("LAQ_CLOTHING", SHARED / "clothing" / "clothing-144px.tar"))
PREDECESSOR = SHARED / "predecessor"
LONGEST = (
    "pipeline/test_pipeline.py", "track/test_servers.py", "pipeline/test_teamwork.py", "serving/test_server.py",
)  # fmt: skip


def needs(path: Path) -> pytest.MarkDecorator:
    """Skip a test where ``path`` is not there."""
    return pytest.mark.skipif(not path.exists(), reason=f"{path.name} is not beside the project")


class Branching(nn.Module):
    """Decides by what it sees, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


def tiny_params() -> dict[str, Any]:
    """The committed parameters, cut down to a study of seconds."""
    params = deepcopy(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    block = params["glyphs"]
    block["dataset"] |= {"train_per_class": 4, "test_per_class": 2}
    block["network"]["training"] |= {"epochs": 1, "batch_size": 100}
    block["divergence"]["alternatives"] = ["features-gaussian"]
    block["subsets"] |= {"sizes": [3], "similar": 1, "dissimilar": 1, "random": 1}
    block["finetune"]["epochs"] = 1
    block["study"] |= {"bits": [3, 8], "calibration_images": 8}
    block["report"]["draws"] = 199
    block["report"]["primary"]["bits"] = 3
    return params


def write_params(folder: Path, params: dict[str, Any]) -> None:
    """Write ``params`` where the commands in ``folder`` read them."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with tiny parameters and nothing made, the current folder while the test runs."""
    write_params(tmp_path, tiny_params())
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "LAQ_CIFAR100", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """``once(name, make)`` is a folder that ``make`` filled, one time for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        target = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.made").exists():
                shutil.rmtree(target, ignore_errors=True)  # what another worker failed to make
                target.mkdir()
                make(target)
                (shared / f"{name}.made").touch()
        return target

    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take longest begin first, those of one fixture not at once."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def empty_database(once: Once) -> Path:
    """A new sqlite store, which takes seconds to make: for copying."""
    from laq.track.store import Store

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            Store()

    return once("empty", make) / "mlflow.db"


@pytest.fixture(scope="session")
def cifar100(once: Once) -> Path:
    """The folder that the stage ``dataset`` writes of the archive, which takes long to unpack."""
    from laq import dataset
    from laq.dataset.registry import Dataset

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.delenv("DVC_ROOT", raising=False)
            patch.setenv("LAQ_CIFAR100", str(CIFAR100.resolve()))
            dataset.run(Dataset(name="cifar100"))

    return once("cifar100", make) / dataset.FOLDER


@pytest.fixture(scope="session")
def new_store(empty_database: Path) -> Callable[[Path], None]:
    """Puts an empty sqlite store at a path, its artifacts beside it."""

    def put(path: Path) -> None:
        shutil.copyfile(empty_database, path)
        with closing(sqlite3.connect(path)) as database, database:
            place = (path.parent / "mlruns/0").as_uri()
            database.execute("UPDATE experiments SET artifact_location = ?", [place])

    return put


@pytest.fixture
def store(project: Path, new_store: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> "Store":
    """An empty store of its own for a test."""
    from laq.track.store import Store

    new_store(project / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    return Store()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch computes on two threads, which those who use one must leave as they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser that pages are opened in."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not there to open pages")
    return found


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed network."""
    from tests.trees import packed_network

    return packed_network(tmp_path_factory.mktemp("packed"))
