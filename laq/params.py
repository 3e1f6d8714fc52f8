"""``params.yaml`` as frozen objects: every key known, typed and in range, or one line that says not.

The file names a study and holds a block for each; a block has one section per pipeline stage::

    study: glyphs          # the block that runs
    glyphs:
      dataset: {...}
      network: {...}
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from laq.dataset.registry import Dataset, Needs
from laq.errors import LaqError
from laq.quantization.options import nearest_name
from laq.sections.base import FILE, Section
from laq.sections.commands import ALL, Advise, Compare, Export, Quantize, Verify
from laq.sections.divergence import Divergence
from laq.sections.embeddings import Embeddings
from laq.sections.mistakes import lines
from laq.sections.network import Network, Training
from laq.sections.report import Report
from laq.sections.study import Study
from laq.sections.subsets import Subsets
from laq.sections.track import Track

CHOICE: Final = "study"  # the key that names the block
# What DVC's interpolation, file names, and MLflow's experiments and registered models can all hold.
NAME: Final = "[A-Za-z][A-Za-z0-9_-]{0,59}"
NAME_IN_WORDS: Final = "a name of at most 60 letters, digits, _ and -, that begins with a letter"

_CHOICE_IN_WORDS: Final = "The study that runs: the name of one of the blocks below."


class Block(Section):
    """A study's block: a section per pipeline stage, and one per command with options of its own."""

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
    export: Export = Export()
    compare: Compare
    advise: Advise
    verify: Verify

    @property
    def needs(self) -> Needs:
        """What the study needs of its images."""
        asked, subsets = self.divergence, self.subsets
        given = [len(classes) for classes in subsets.given]
        sizes = [*(subsets.sizes if any(subsets.counts.values()) else []), *given] or [2]
        by_neighbours = any(way.endswith("-knn") for way in (asked.name, *asked.alternatives))
        neighbours = (asked.knn_neighbours + 1, f"divergence.knn_neighbours: {asked.knn_neighbours}")
        return Needs(
            classes=(max(sizes), "subsets.sizes"),
            train=neighbours if by_neighbours else Needs.train,
            subset=min(sizes),
            calibration=(self.study.calibration_images, "study.calibration_images"),
        )


_KEY: Final = re.compile(rf"^(?=(?:{'|'.join(Block.model_fields)})[.:])", re.MULTILINE)


class Params(Block):
    """The study that runs, and its name."""

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The study as plain values, as records of provenance hold them."""
        return self.model_dump(mode="json")


def load_params(path: Path = FILE) -> Params:
    """Read the study that ``path`` names.

    That it is YAML whose keys stand once, and the studies' names, are checked for the whole file; what keys
    hold, for the study that runs alone: others may be unfinished.

    Raises:
        LaqError: the file is missing or is not YAML (1.2, as DVC reads it), a name, key, type or range in it
            is wrong, or what one section says does not go with another's.
    """
    content = _read_yaml(path)
    name = _study(content, path)
    try:
        # Through JSON, where strict types still let a list stand for a tuple.
        text = json.dumps(content[name], default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise LaqError(f"{path}: {name}: holds more than texts, numbers, lists and keys ({error})") from error
    try:
        block = Block.model_validate_json(text)
    except ValidationError as error:
        raise LaqError("\n".join(f"{path}: {name}.{line}" for line in lines(error, Block))) from error
    if wrong := list(_across(block)):
        raise LaqError("\n".join(f"{path}: {name}.{line}" for line in wrong))
    return Params(name=name, **dict(block))


@contextmanager
def naming(params: Params) -> Iterator[None]:
    """Inside the block a line of a ``LaqError`` that begins with a key tells the file and the study, too.

    Raises:
        LaqError: what the block raises, in full.
    """
    try:
        yield
    except LaqError as error:
        raise LaqError(_KEY.sub(f"{FILE}: {params.name}.", str(error))) from error


def study_names(path: Path = FILE) -> list[str]:
    """The names of the file's blocks, whatever these hold.

    Raises:
        LaqError: the file is missing or is not YAML.
    """
    return [name for name in _read_yaml(path) if name != CHOICE]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the whole file, which editors complete and check it by."""
    block = Block.model_json_schema(ref_template="#/$defs/{model}")
    sections = block.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml of laq",
        "type": "object",
        "properties": {CHOICE: {"type": "string", "pattern": f"^{NAME}$", "description": _CHOICE_IN_WORDS}},
        "required": [CHOICE],
        "patternProperties": {f"^(?!{CHOICE}$){NAME}$": {"$ref": "#/$defs/Block"}},
        "additionalProperties": False,
        "$defs": {"Block": block, **sections},
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LaqError(f"{path}: not found; run laq in the project's folder") from error
    except DuplicateKeyError as error:
        found, line = str(error.problem).partition(" with value")[0], error.problem_mark.line + 1
        raise LaqError(f"{path}: line {line}: {found}; each may stand but once") from error
    except MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise LaqError(f"{path}: line {line}: not YAML: {problem}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise LaqError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return _mapping(content, str(path))


@cache
def _parsed(text: str) -> Any:
    """What a file of YAML 1.2 holds, which a command asks for several times and takes a tenth of a second."""
    return YAML(typ="safe", pure=True).load(text)


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise LaqError(f"{where}: found {content!r}; must be keys and values")
    return content


def _study(content: Mapping[Any, Any], path: Path) -> str:
    """The name of the study that runs, all blocks being such as can be one."""
    blocks = [key for key in content if key != CHOICE]
    for block in blocks:
        is_choice = CHOICE not in content and not isinstance(content[block], dict)
        choice = nearest_name(str(block), [CHOICE]) if is_choice else ""
        if choice:
            raise LaqError(f"{path}: {block}: unknown key{choice}")
        if not isinstance(block, str) or re.fullmatch(NAME, block, re.ASCII) is None:
            raise LaqError(f"{path}: found a study named {block!r}; must be {NAME_IN_WORDS}")
        _mapping(content[block], f"{path}: {block}")
    name = content.get(CHOICE)
    if name not in blocks:
        found = f"found {name!r}" if CHOICE in content else "missing"
        hint = nearest_name(str(name), blocks)
        raise LaqError(f"{path}: {CHOICE}: {found}; must name a block: {', '.join(blocks)}{hint}")
    return str(name)


def _across(block: Block) -> Iterator[str]:
    """What is wrong with a section in view of another one: the key, what was found, what is allowed."""
    subsets, name = block.subsets, block.dataset.name
    if classes := block.dataset.source.classes:
        most = {"sizes": max(subsets.sizes), "similar": subsets.similar, "dissimilar": subsets.dissimilar}
        for key, count in most.items():
            if count > classes:
                yield f"subsets.{key}: found {count}; must be at most {classes}, the classes of {name}"
        numbers = [number for given in subsets.given for number in given if isinstance(number, int)]
        if numbers and max(numbers) >= classes:
            yield f"subsets.given: found {max(numbers)}; must be below {classes}, the classes of {name}"
    yield from _images_needed(block)
    if wrong := subsets.unknown(block.quantize.subset, ALL):
        yield f"quantize.subset: {wrong}"
    yield from _asked_first(block)


def _asked_first(block: Block) -> Iterator[str]:
    """Whether the study measures what its report is to ask first: that is asked of the original network."""
    asked, grids = block.report.primary, [g for g in block.study.grids if "original" in g.bases]
    measured = {method: [g.bits for g in grids if method in g.methods] for g in grids for method in g.methods}
    if not grids:
        yield "study.bases: found no 'original'; must have it, as report.primary asks about that network"
    elif asked.method not in measured:
        allowed = f"a method of the study's: {', '.join(measured)}"
        hint = nearest_name(asked.method, list(measured))
        yield f"report.primary.method: found {asked.method!r}; must be {allowed}{hint}"
    elif asked.bits not in (bits := list(dict.fromkeys(chain.from_iterable(measured[asked.method])))):
        allowed = f"what the study measures by {asked.method}: {', '.join(map(str, bits))}"
        hint = nearest_name(str(asked.bits), [str(known) for known in bits])
        yield f"report.primary.bits: found {asked.bits!r}; must be {allowed}{hint}"


def _images_needed(block: Block) -> Iterator[str]:
    """Whether a class has the training images that divergences are estimated from."""
    images, asked = block.dataset.train_per_class, block.divergence
    if images is None:
        return
    if images < 2:
        yield f"dataset.train_per_class: found {images}; must be at least 2, which a class's divergence needs"
    by_neighbours = any(way.endswith("-knn") for way in (asked.name, *asked.alternatives))
    if by_neighbours and asked.knn_neighbours >= images:
        found, most = asked.knn_neighbours, f"{images}, the training images of a class"
        yield f"divergence.knn_neighbours: found {found}; must be below {most}"


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(json_schema(), indent=2)}\n")
