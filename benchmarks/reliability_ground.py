"""The tiny project that the reliability scenarios are played on, and what is in it, to be compared."""

import hashlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from mlflow import MlflowClient
from reliability_commands import finish

from laq.files import digest, md5, replacing_folder
from tests.conftest import tiny_params
from tests.project import make_clone

Content = dict[str, str]  # names, and the hash of what is there

_PROJECT: Final = ("dvc.yaml", "params.yaml", "tests/conftest.py", "tests/project.py")
_MOST_NAMED: Final = 3
# What is another one every time: what a run took, when, and under which id.
_TIMES: Final = ("seconds", "MLmodel")


class Ground:
    """The project as cloned (``bare``) and after `dvc repro` (``done``), of the code as it is."""

    def __init__(self, work: Path, root: Path) -> None:
        files = [*sorted((root / "laq").rglob("*.py")), *(root / name for name in _PROJECT), Path(__file__)]
        code = digest([md5(file) for file in files])
        self.folder = work / code[:12]
        self.bare, self.done = self.folder / "bare", self.folder / "done"
        for left in (*self.folder.glob("copy-*"), *self.folder.glob("*.log")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if not self.bare.exists():
            with replacing_folder(self.bare) as folder:
                make_clone(folder, _params())
        finish(self.bare, "python", "-m", "laq", "--version")  # all that is forked starts as soon
        if not self.done.exists():
            with replacing_folder(self.done) as folder:
                shutil.copytree(self.bare, folder, symlinks=True, dirs_exist_ok=True)
                # As `dvc repro` does, in a fraction of the time.
                for stage in yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]:
                    finish(folder, "python", "-m", "laq", stage, DVC_STAGE=stage)
                finish(folder, "dvc", "commit", "--force")

    @contextmanager
    def copy(self, source: Path, *without: str) -> Iterator[Path]:
        """A copy of the project, ``without`` some of its files, removed at the end of the block."""
        folder = self.folder / f"copy-{uuid.uuid4().hex[:8]}"
        shutil.copytree(source, folder, symlinks=True)
        for pattern in without:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            for log in self.folder.glob("*.log"):
                log.unlink()

    def known(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returned the first time, as JSON: an undisturbed run's seconds, a store's content."""
        if name not in self._noted():
            self._note(name, make())
        return self._noted()[name]

    def _noted(self) -> dict[str, Any]:
        path = self.folder / "known.json"
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return known

    def _note(self, name: str, value: Any) -> None:
        text = json.dumps({**self._noted(), name: value})
        (self.folder / "known.json").write_text(text, encoding="utf-8")


def _params() -> dict[str, Any]:
    """The tests' tiny study, tinier; two epochs, so that a training can be killed between them."""
    params = tiny_params()
    block = params["glyphs"]
    block["dataset"] |= {"train_per_class": 2, "test_per_class": 2}
    block["network"]["input_size"] = 16
    block["network"]["training"]["epochs"] = 2
    block["subsets"] |= {"dissimilar": 0}
    block["study"] |= {"bits": [3], "calibration_images": 4}
    block["report"]["draws"] = 199
    block["advise"] |= {"bits": [3], "methods": ["rtn", "gpfq"]}
    return params


def results_in(folder: Path) -> Content:
    """The project's results: all of `data/`, what DVC has recorded, and what the cache holds."""
    kept = [*(folder / "data").rglob("*"), *(folder / ".laq").glob("[cfs]*/*/*"), folder / "dvc.lock"]
    files = [path for path in kept if path.is_file() and not any(word in path.name for word in _TIMES)]
    return {path.relative_to(folder).as_posix(): _hash(path) for path in files}


def leftovers(folder: Path) -> list[str]:
    """What is there of results that are not whole."""
    found = [*folder.rglob(".laq-partial-*"), *folder.rglob("*.partial"), *folder.glob("*.db.new*")]
    return [f"left behind: {path.relative_to(folder)}" for path in found]


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names that are missing, beyond what is expected, or hold something else; of many the first."""
    missing, beyond = expected.keys() - found.keys(), found.keys() - expected.keys()
    other = {name for name in expected.keys() & found.keys() if expected[name] != found[name]}
    told = []
    for word, names in (("missing", missing), ("beyond", beyond), ("other", other)):
        told += [f"{word}: {name}" for name in sorted(names)[:_MOST_NAMED]]
        told += [f"{word}: {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return told


def store_content(uri: str, artifacts: Path | None = None) -> dict[str, Any]:
    """What an MLflow store holds of runs, models and registered models, whatever their ids and times.

    ``artifacts`` is the folder of a server whose artifacts have addresses of its own.
    """
    client = MlflowClient(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = list(client.search_runs(experiments, max_results=5000))
    models = list(client.search_logged_models(experiments, max_results=1000))
    keys = {run.info.run_id: run.data.tags.get("laq.key", run.info.run_name) for run in runs}
    keys |= {model.model_id: f"{keys.get(model.source_run_id)}/{model.name}" for model in models}
    content: Counter[str] = Counter()
    for run in runs:
        metrics = {name: value for name, value in run.data.metrics.items() if "seconds" not in name}
        parts = {"status": run.info.status, "params": run.data.params, "metrics": metrics}
        parts |= {"tags": run.data.tags} | _files(run.info.artifact_uri, artifacts)
        content.update(_told(f"run {keys[run.info.run_id]}", parts, keys))
    for model in models:
        parts = {"status": model.status, "params": model.params, "tags": model.tags}
        parts |= _files(model.artifact_location, artifacts)
        content.update(_told(f"model {keys[model.model_id]}", parts, keys))
    for registered in client.search_registered_models():
        of = {a: client.get_model_version_by_alias(registered.name, a) for a in registered.aliases}
        aliases = {alias: [version.run_id, version.model_id, version.tags] for alias, version in of.items()}
        content[f"registered {registered.name}: {_anonymous(aliases, keys)}"] += 1
    return dict(content)


def _told(name: str, parts: Mapping[str, Any], keys: Mapping[str, str]) -> list[str]:
    """A line for each part, so that a difference says which part it is in."""
    return [f"{name}, {part}: {_anonymous(told, keys)}" for part, told in parts.items()]


def _anonymous(told: Any, keys: Mapping[str, str]) -> str:
    """The hash of what is told, with keys for ids."""
    text = json.dumps(told, sort_keys=True, default=str)
    for name, key in keys.items():
        text = text.replace(name, key)
    return digest(text)[:16]


def _files(uri: str, artifacts: Path | None) -> Content:
    """The files of a run or a model."""
    place = artifacts / uri.partition(":/")[2] if artifacts else Path(uri.removeprefix("file://"))
    files = [
        path for path in place.rglob("*") if path.is_file() and not any(word in path.name for word in _TIMES)
    ]
    return {path.relative_to(place).as_posix(): _hash(path) for path in files}


def _hash(path: Path) -> str:
    """The hash of what a file holds; of the tables of measurements, without the seconds that these took."""
    content = path.read_bytes()
    if path.name == "measurements.json":
        rows = [
            {name: value for name, value in row.items() if name != "seconds"} for row in json.loads(content)
        ]
        content = json.dumps(rows).encode()
    return hashlib.sha256(content).hexdigest()
