"""The page of keys of ``params.yaml`` in the documentation: tables made of the JSON Schema."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_SCHEMA: Final = Path(__file__).parents[1] / "params.schema.json"
_PLACE: Final = "{{ sections }}"
_KINDS: Final = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "object": "keys and values",
    "null": "null",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them (a hook of MkDocs)."""
    return markdown.replace(_PLACE, "\n".join(_lines())) if _PLACE in markdown else markdown


def _lines() -> Iterator[str]:
    """A heading, what the section is for, and a table of its keys, for each section of a block."""
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    definitions = schema["$defs"]
    for name, place in definitions["Block"]["properties"].items():
        section = _resolved(place, definitions)
        yield f"## {name}\n\n{section.get('description', '').replace('``', '`')}\n"
        for part in section.get("anyOf", [section]):
            needed = part.get("required", [])
            keys = {key: found for key, found in part.get("properties", {}).items() if "const" not in found}
            if named := part.get("properties", {}).get("name", {}).get("const"):
                yield f"### `name: {named}`\n"
            if keys:
                yield "| key | value | default |\n|---|---|---|"
            for key, found in keys.items():
                default = "needed" if key in needed else f"`{json.dumps(found.get('default'))}`"
                yield f"| `{key}` | {_told(found, definitions)} | {default} |"
            yield ""


def _resolved(place: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a reference stands for."""
    return definitions[place["$ref"].rpartition("/")[2]] if "$ref" in place else place


def _told(found: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A value's schema in words."""
    if "$ref" in found:
        return f"a section {found['$ref'].rpartition('/')[2]}"
    if "anyOf" in found:
        return " or ".join(dict.fromkeys(_told(part, definitions) for part in found["anyOf"]))
    if "enum" in found:
        return ", ".join(f"`{value}`" for value in found["enum"])
    if found.get("type") == "array":
        return f"a list: {_told(found.get('items', {}), definitions)}"
    bounds = [
        f"{sign} {found[bound]}"
        for bound, sign in (
            ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"),
        )
        if bound in found
    ]  # fmt: skip
    kinds = {
        "integer": "a whole number",
        "number": "a number",
        "string": "a text",
        "boolean": "true or false",
    }
    kinds |= {"object": "keys and values", "null": "null"}
    return " ".join([kinds.get(found.get("type", ""), "a value"), *bounds])
