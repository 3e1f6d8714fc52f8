"""The JSON Schema of params.yaml, which editors check it by: current, and of one mind with the commands."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from laq.params import json_schema
from tests.base.test_bad_input import GLYPHS, IDS, KEYS, with_key
from tests.conftest import ROOT

FILE = ROOT / "params.schema.json"
SCHEMA = json.loads(FILE.read_text(encoding="utf-8"))
WORDS = {"$schema", "$defs", "title", "description", "default"}  # which say nothing of what is allowed
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip
# What takes more than one key to see, or more than a regular expression to read.
BEYOND_A_SCHEMA = {
    "dataset.train_per_class", "divergence.estimator", "quantize.subset", "subsets", "study.also=[{'bits': ['3 last:8",
    "divergence.alternatives=['umap-knn']", "divergence.given={'pca-gaussian': {'p", "study.bits=['asc:2']",
    "subsets.sizes=[101]", "subsets.dissimilar", "subsets.given=[[1, 100]]", "study.bits=['3 first:99']",
    "study.bits=['8,99']", "study.bits=['auto:1.5']", "study.bits=['auto:25']", "study.bits=['fc=3 fc=4']", "study.bits=['999999999999999999",
    "report.primary.bits=2", "report.primary.method=gpfq_l0", "study.methods=['rtn', 'qronos']", "study.bits=['auto:3', 8]", "study.bases=['finetuned']",
    "study.bits=['3 first:8', '3  fi", "network.training=None",
    "study.bits=['*=3 body.fc=8']", "study.bits=['body.*=3 body.?=8'", "network.arguments", "embeddings.arguments", "embeddings={'network': 'net.pt2",
}  # fmt: skip


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def rules(key: str, schema: dict[str, Any]) -> list[Any]:
    """The schemas of an object's key."""
    patterns = schema.get("patternProperties", {}).items()
    named = [schema["properties"][key]] if key in schema.get("properties", {}) else []
    return named + [rule for pattern, rule in patterns if re.search(pattern, key)]


# Whether a value is as a keyword tells, by JSON Schema 2020-12; also given is the schema that has the keyword.
HOLDS: dict[str, Callable[[Any, Any, Any], bool]] = {
    "type": lambda told, value, _: isinstance(value, TYPES[told]) and (told == "boolean" or not isinstance(value, bool)),
    "enum": lambda told, value, _: value in told,
    "const": lambda told, value, _: value == told,
    "anyOf": lambda told, value, _: any(fits(value, rule) for rule in told),
    "allOf": lambda told, value, _: all(fits(value, rule) for rule in told),
    "if": lambda told, value, schema: not fits(value, told) or fits(value, schema["then"]),
    "then": lambda *_: True,
    "$ref": lambda told, value, _: fits(value, SCHEMA["$defs"][told.removeprefix("#/$defs/")]),
    "required": lambda told, value, _: not isinstance(value, dict) or set(told) <= set(value),
    "dependentRequired": lambda told, value, _: all(set(told[key]) <= set(value) for key in told if key in value),
    "properties": lambda told, value, _: not isinstance(value, dict) or all(fits(value[k], told[k]) for k in told if k in value),
    "patternProperties": lambda told, value, schema: not isinstance(value, dict) or all(fits(value[k], r) for k in value for r in rules(k, schema)),
    "additionalProperties": lambda told, value, schema: not isinstance(value, dict) or all(rules(key, schema) or fits(value[key], told) for key in value),
    "items": lambda told, value, _: not isinstance(value, list) or all(fits(part, told) for part in value),
    "minItems": lambda told, value, _: not isinstance(value, list) or len(value) >= told,
    "maxItems": lambda told, value, _: not isinstance(value, list) or len(value) <= told,
    "uniqueItems": lambda told, value, _: not isinstance(value, list) or len({repr(part) for part in value}) == len(value),
    "minLength": lambda told, value, _: not isinstance(value, str) or len(value) >= told,
    "pattern": lambda told, value, _: not isinstance(value, str) or re.search(told, value) is not None,
    "minimum": lambda told, value, _: not number(value) or value >= told,
    "maximum": lambda told, value, _: not number(value) or value <= told,
    "exclusiveMinimum": lambda told, value, _: not number(value) or value > told,
    "exclusiveMaximum": lambda told, value, _: not number(value) or value < told,
}  # fmt: skip


def fits(value: Any, schema: Any) -> bool:
    """Whether a schema allows ``value``; a keyword that is not known here ends the test."""
    if isinstance(schema, bool):
        return schema
    return all(
        HOLDS[keyword](told, value, schema) for keyword, told in schema.items() if keyword not in WORDS
    )


def test_the_schema_is_that_of_the_sections() -> None:
    assert json_schema() == SCHEMA, "make schema"


def test_a_command_writes_it() -> None:
    done = subprocess.run([sys.executable, "-m", "laq.params"], capture_output=True, check=True, text=True)
    assert done.stdout == FILE.read_text(encoding="utf-8")


def test_editors_find_it_beside_the_committed_file_which_it_accepts() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={FILE.name}"
    assert fits(yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, value, _ in KEYS], ids=IDS)
def test_it_refuses_what_the_commands_refuse(key: str, value: Any) -> None:
    params = {"study": "glyphs", "glyphs": with_key(key, value)}
    beyond = key in BEYOND_A_SCHEMA or f"{key}={str(value)[:20]}" in BEYOND_A_SCHEMA
    assert fits(params, SCHEMA) == beyond


@pytest.mark.parametrize("change", [{"a.b": {}}, {"study": 3}, {"mine": 3}], ids=str)
def test_it_refuses_names_and_blocks_that_are_none(change: dict[str, Any]) -> None:
    assert not fits({"study": "glyphs", "glyphs": GLYPHS, **change}, SCHEMA)
