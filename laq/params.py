"""``params.yaml`` as frozen objects: every key known, typed and in range, or one line that says not.

The file names a study and holds a block for each; a block has one section per pipeline stage::

    study: glyphs          # the block that runs
    glyphs:
      dataset: {...}
      network: {...}
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from laq.dataset.registry import Dataset
from laq.errors import LaqError
from laq.sections.base import FILE, Section
from laq.sections.commands import Advise, Compare, Quantize
from laq.sections.divergence import Divergence
from laq.sections.embeddings import Embeddings
from laq.sections.network import Network, Training
from laq.sections.report import Report
from laq.sections.study import Study
from laq.sections.subsets import Subsets
from laq.sections.track import Track


class Params(Section):
    """One study: a section per pipeline stage, and one per command with options of its own."""

    name: str
    dataset: Dataset
    network: Network
    embeddings: Embeddings
    divergence: Divergence
    subsets: Subsets
    finetune: Training
    study: Study
    report: Report
    track: Track
    quantize: Quantize
    compare: Compare
    advise: Advise


def load_params(path: Path = FILE) -> Params:
    """Read the study that ``path`` names.

    Raises:
        LaqError: the file is missing, is not YAML, or a key, type or range in it is wrong.
    """
    content = _read_yaml(path)
    name = content.get("study")
    blocks = [str(key) for key in content if key != "study"]
    if not isinstance(name, str) or name not in blocks:
        raise LaqError(f"{path}: study is {name!r}; it must name a block: {', '.join(blocks)}")
    try:
        # Through JSON, where strict types still let a list stand for a tuple.
        block = {str(key): value for key, value in _mapping(content[name], path, name).items()}
        if "name" in block:
            raise LaqError(f"{path}: {name}.name: unknown key; the block's own key is the study's name")
        return Params.model_validate_json(json.dumps({**block, "name": name}, default=str))
    except ValidationError as error:
        raise LaqError("\n".join(_lines(error, path, name))) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LaqError(f"{path}: not found; run laq in the project's folder") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LaqError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return _mapping(content, path, "the file")


def _mapping(content: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise LaqError(f"{path}: {where} must hold keys and values, found {content!r}")
    return content


def _lines(error: ValidationError, path: Path, name: str) -> Iterator[str]:
    """One line per mistake: file, key, what is wrong, what was found."""
    for mistake in error.errors():
        key = ".".join(str(part) for part in (name, *mistake["loc"]))
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = f"unknown key; known here: {', '.join(_known_keys(mistake['loc'][:-1]))}"
        found = "" if mistake["type"] in {"missing", "value_error"} else f" (found {mistake['input']!r})"
        yield f"{path}: {key}: {message}{found}"


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """The keys that the section at ``location`` allows."""
    section: type[BaseModel] = Params
    for part in location:
        field = section.model_fields.get(str(part))
        candidates = [] if field is None else _sections_in(field.annotation)
        if candidates:
            section = candidates[0]
    return sorted(key for key in section.model_fields if key != "name" or section is Dataset)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for part in getattr(annotation, "__args__", ()) for s in _sections_in(part)]
