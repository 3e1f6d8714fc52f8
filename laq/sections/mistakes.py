"""What a section refuses, in lines: which key, what was found, what is allowed."""

import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from laq.quantization.options import nearest_name

# What must be, by pydantic's types of errors; what their contexts hold is filled in.
_OWN_KEYS: Final = re.compile(r"^\S+: (?:\w+: )*(?=\w+: (?:found|missing|unknown key)\b)")
_ALLOWED: Final = {
    "bool_type": "true or false",
    "dict_type": "keys and values",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "model_type": "keys and values",
    "string_type": "a text",
    "too_short": "a list of {min_length} or more",
    "tuple_type": "a list",
}


def lines(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """A line for each mistake in what ``root`` was to be made of, beginning with the key.

    What a section's own checks say may begin with a key of it. A key that is missing where another one is
    misspelt is no mistake of its own.
    """
    mistakes = error.errors(include_url=False)
    unknown = [mistake["loc"] for mistake in mistakes if mistake["type"] == "extra_forbidden"]
    for mistake in mistakes:
        *above, key = mistake["loc"] or ("",)
        beside = [str(loc[-1]) for loc in unknown if list(loc[:-1]) == above]
        if mistake["type"] == "missing" and any(get_close_matches(name, [str(key)]) for name in beside):
            continue
        if mistake["type"] == "too_short" and any(m["loc"][:-1] == mistake["loc"] for m in mistakes):
            continue  # without what is wrong in it
        keys = ".".join(str(part) for part in mistake["loc"] if part != "[key]")
        yield _OWN_KEYS.sub(lambda own: own[0].replace(": ", "."), f"{keys}: {_words(mistake, root)}")


def _words(mistake: Any, root: type[BaseModel]) -> str:
    """What is wrong."""
    kind, found = mistake["type"], mistake["input"]
    if kind == "value_error":
        return str(mistake["msg"]).removeprefix("Value error, ")
    if kind == "missing":
        return "missing; must be given"
    if kind == "extra_forbidden":
        *above, key = mistake["loc"]
        return unknown_key(str(key), _known_keys(tuple(above), root))
    if kind == "literal_error":
        words = re.findall("'([^']*)'", mistake["ctx"]["expected"])
        return f"found {found!r}; must be {', '.join(words)}{nearest_name(str(found), words)}"
    context = mistake.get("ctx", {}).items()
    bounds = {name: f"{bound:.12g}" for name, bound in context if isinstance(bound, int | float)}
    if kind not in _ALLOWED:
        return f"found {found!r}; {mistake['msg']}"
    return f"found {found!r}; must be {_ALLOWED[kind].format(**bounds)}"


def unknown_key(key: str, known: Collection[str]) -> str:
    """What is said of a key that is not known, and which one may be meant."""
    return f"unknown key; known here: {', '.join(known)}{nearest_name(key, list(known))}"


def _known_keys(location: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    """The keys that the section at ``location`` allows."""
    section = root
    for part in location:
        field = section.model_fields.get(str(part))
        candidates = [] if field is None else _sections_in(field.annotation)
        if candidates:
            section = candidates[0]
    return sorted(section.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for part in getattr(annotation, "__args__", ()) for s in _sections_in(part)]
