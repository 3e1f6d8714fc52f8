"""The chain of provenance: a record of what made each stage's outputs, checked by all who use them.

The stages are those of ``dvc.yaml``. A record, ``data/provenance/<stage>.json``, holds the parameters that
the stage used, the hashes of its inputs and outputs, that of each file of ``laq`` that it uses, and the
versions of the packages that these import.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from laq.errors import LaqError
from laq.files import dvc_md5, need, project_root, read_json, replacing_file, write_json, wrong_kind
from laq.imports import package_versions, source_files
from laq.states import state_md5

FILE: Final = Path("dvc.yaml")
RECORDS: Final = Path("data/provenance")
_RESTORE: Final = f"`git checkout {FILE}` brings back the project's own"
# The key of a stage's section that names a network, and the file that such a name may tell.
_NETWORK_OF: Final = {"network": "architecture", "embeddings": "network"}
_CODE: Final = re.compile(r"(?:python:)?(.+\.(?:py|pt2))(?::\w+)?")
Parameters = Mapping[str, Any]  # of a study: its name, and its sections
# What is said of a part of a record that differs from what is there now.
_CHANGES: Final = {
    "parameters": "params.yaml: {study}.{name} is {new!r}, and was {old!r} when the stage {stage} ran",
    "code": "{name}: changed since the stage {stage} ran",
    "inputs": "{name}: changed since the stage {stage} read it",
    "outputs": "{name}: changed since the stage {stage} wrote it",
    "versions": "{name} {new} is installed, and the stage {stage} ran with {old}",
}


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline: what it reads and writes, and its keys in the study's block, dotted."""

    name: str
    keys: tuple[str, ...]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]

    @property
    def record(self) -> Path:
        """Where the record lies of what made the outputs."""
        return RECORDS / f"{self.name}.json"

    def made_by(self, study: Parameters) -> dict[str, Any]:
        """What makes the stage's outputs as things are: all of its record but the outputs."""
        module = f"laq.{self.name}"
        return {
            "parameters": {key: reduce(getitem, key.split("."), study) for key in self.keys},
            "inputs": _hashes(self.inputs)
            | {name: state_md5(path) for name, path in _own_files(self.name, study).items() if path.exists()},
            "code": source_files(module),
            "versions": package_versions(module),
        }


@dataclass(frozen=True)
class Stale:
    """A stage whose outputs are not what it would make now, and why, in one line.

    ``unseen`` is a change that DVC does not see: the stage must be forced to run.
    """

    stage: str
    reason: str
    unseen: bool = False

    @property
    def advice(self) -> str:
        """The reason, and what to run."""
        forced = f" --force --single-item {self.stage}`, then `dvc repro" if self.unseen else ""
        return f"{self.reason}; run `dvc repro{forced}`"


def read_stages() -> dict[str, Stage]:
    """The stages of ``dvc.yaml``, in its order, which is that of running them.

    Raises:
        LaqError: the file is missing or is not YAML.
    """
    return {name: _stage(name, fields) for name, fields in _declared().items()}


class _Declared(BaseModel):
    """What ``dvc.yaml`` says of a stage, as far as it is used here."""

    params: list[str] = []
    deps: list[str] = []
    outs: list[str] = []


class _File(BaseModel):
    """What ``dvc.yaml`` holds."""

    stages: dict[str, _Declared]


def _declared() -> dict[str, _Declared]:
    """The stages as ``dvc.yaml`` has them."""
    try:
        return _parsed(need(FILE).read_text(encoding="utf-8")).stages
    except (YAMLError, UnicodeDecodeError) as error:
        raise LaqError(f"{FILE}: not YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        raise LaqError(f"{FILE}: {wrong_kind(error)}; {_RESTORE}") from error


@cache
def _parsed(text: str) -> _File:
    return _File.model_validate(YAML(typ="safe").load(text), strict=True)


def _stage(name: str, fields: _Declared) -> Stage:
    return Stage(
        name,
        tuple(key.removeprefix("${study}.") for key in fields.params),
        tuple(Path(path) for path in fields.deps if not path.startswith(("laq/", "${"))),
        tuple(Path(path) for path in fields.outs if not path.startswith(str(RECORDS))),
    )


def chain(*names: str) -> list[Stage]:
    """The stages that these need, themselves included, in the order of running them.

    Raises:
        LaqError: ``dvc.yaml`` lacks one of them.
    """
    stages = read_stages()
    if missing := [name for name in names if name not in stages]:
        raise LaqError(f"{FILE}: stages: {missing[0]}: missing; {_RESTORE}")
    needed = set(names)
    for stage in reversed(stages.values()):
        if stage.name in needed:
            needed |= {
                earlier.name
                for earlier in stages.values()
                for output in earlier.outputs
                if any(path.is_relative_to(output) for path in stage.inputs)
            }
    return [stage for stage in stages.values() if stage.name in needed]


@contextmanager
def recording(name: str, study: Parameters) -> Iterator[None]:
    """Run a stage in this block: what it reads is checked first, and what made its outputs recorded after.

    Raises:
        LaqError: what it reads is missing or stale.
    """
    check_inputs(name, study)
    stage = read_stages()[name]
    stage.record.unlink(missing_ok=True)  # so that a stage that is killed leaves none
    made_by = stage.made_by(study)
    yield
    write_json(stage.record, {**made_by, "outputs": _hashes(stage.outputs)})


def check_inputs(name: str, study: Parameters) -> None:
    """See that what a stage reads is what the pipeline would make now.

    Raises:
        LaqError: something is missing or stale.
    """
    *earlier, _ = chain(name)
    check(study, *(stage.name for stage in earlier))


def check(study: Parameters, *names: str) -> None:
    """See that the outputs of these stages are what the pipeline would make now, up to the dataset.

    Raises:
        LaqError: one is missing or stale; the line names it, what changed, and what to run.
    """
    if stale := find_stale(study, *names):
        raise LaqError(stale.advice)


def find_stale(study: Parameters, *names: str) -> Stale | None:
    """The first of these stages, and those that they need, whose outputs are missing or stale."""
    return next((stale for stage in chain(*names) for stale in _staleness(stage, study)), None)


@dataclass(frozen=True)
class Condition:
    """How a stage's outputs are: made, stale or missing, or waiting for another stage; and why."""

    stage: str
    state: Literal["made", "stale", "missing", "waits"]
    reason: str = ""
    stale: Stale | None = None


def conditions(study: Parameters) -> Iterator[Condition]:
    """How each stage is that leaves a record, in the order of running them."""
    wrong: set[str] = set()
    for stage in read_stages().values():
        if not stage.outputs:
            continue
        first = next((s.name for s in chain(stage.name)[:-1] if s.name in wrong), "")
        stale = next(_staleness(stage, study), None)
        missing = not all(path.exists() for path in (*stage.outputs, stage.record))
        if stale or first:
            wrong.add(stage.name)
        if missing:
            yield Condition(stage.name, "missing", f"after {first}" if first else "", stale)
        elif first:
            yield Condition(stage.name, "waits", f"for {first}, which it reads")
        elif stale:
            yield Condition(stage.name, "stale", stale.reason, stale)
        else:
            yield Condition(stage.name, "made")


def read_records(*names: str) -> dict[str, dict[str, Any]]:
    """The records of these stages and of those that they need, by name."""
    return {stage.name: read_json(stage.record) for stage in chain(*names)}


def made_from(name: str, study: Parameters) -> dict[str, dict[str, Any]]:
    """What makes a stage's outputs as things are: the records of all stages before it, and its own so far."""
    *earlier, stage = chain(name)
    return {**{stage.name: read_json(stage.record) for stage in earlier}, name: stage.made_by(study)}


def _staleness(stage: Stage, study: Parameters) -> Iterator[Stale]:
    for path in (*stage.outputs, stage.record):
        if not path.exists():
            yield Stale(stage.name, f"{path}: not found")
            return
    made, now = read_json(stage.record), stage.made_by(study) | {"outputs": _hashes(stage.outputs)}
    if not isinstance(made, dict) or made.keys() != now.keys():
        yield Stale(stage.name, f"{stage.record}: not the record of a stage")
        return
    own = _own_files(stage.name, study)
    if isinstance(made["inputs"], dict):  # they need not be there for what is made of them
        gone = [name for name, path in own.items() if name in made["inputs"] and not path.exists()]
        now["inputs"] |= {name: made["inputs"][name] for name in gone}
    for part, text in _CHANGES.items():
        for name, old, new in _differences(made[part], now[part]):
            reason = text.format(study=study["name"], stage=stage.name, name=name, old=old, new=new)
            watched = stage.name == "dataset" and is_watched(study)
            unseen = part == "versions" or (part == "inputs" and name in own and not watched)
            yield Stale(stage.name, reason, unseen=unseen)


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted names of what two nested maps have different, and the values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield key, old, new
        return
    for name in dict.fromkeys([*old, *new]):
        yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)


def is_watched(study: Parameters) -> bool:
    """Whether DVC sees changes of a study's own pictures, its stage ``dataset`` depending on their path."""
    return not study["dataset"].get("path") or _dependency(study) in _declared()["dataset"].deps


def watch(study: Parameters) -> None:
    """Let DVC see changes of a study's own pictures, from its next run on."""
    if is_watched(study):
        return
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 110, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(FILE.read_text(encoding="utf-8"))
    content["stages"]["dataset"]["deps"].append(_dependency(study))
    with replacing_file(FILE) as partial:
        yaml.dump(content, partial)


def _dependency(study: Parameters) -> str:
    """The path of the study's pictures, as ``dvc.yaml`` takes it from ``params.yaml``."""
    return f"${{{study['name']}.dataset.path}}"


def _own_files(stage: str, study: Parameters) -> dict[str, Path]:
    """The study's own files that a stage reads, by their paths in ``params.yaml``.

    They are pictures, networks and names of outputs; of other files ``params.yaml`` tells the hash, too.
    """
    if stage == "dataset":
        names = [study["dataset"].get("path")]
    elif stage in _NETWORK_OF:
        section = study[stage]
        code = _CODE.fullmatch(section[_NETWORK_OF[stage]])
        names = [code and code[1], section.get("outputs")]
    else:
        names = []
    return {name: project_root() / name for name in names if isinstance(name, str) and name}


def _hashes(paths: tuple[Path, ...]) -> dict[str, str]:
    return {str(path): dvc_md5(path) for path in paths}
