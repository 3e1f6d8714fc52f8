"""The examples in docstrings run, and whatever the reference shows has one."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOWN = [
    line.removeprefix("::: ")
    for line in (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("::: ") and not line.startswith("::: laq.track")  # which tests/track runs in a store
]


@pytest.mark.parametrize("name", SHOWN)
def test_the_example_gives_what_it_says(name: str) -> None:
    module, _, shown = name.rpartition(".")
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(import_module(module), shown), shown)
    assert found.examples
    told: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found, out=told.append)
    assert not failed, "".join(told)
