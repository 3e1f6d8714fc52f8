"""Which code a result depends on: modules and packages, by the import graph of ``laq``.

What a registry names as text, such as ``"laq.dataset.glyphs:write_glyphs"``, counts as imported.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Final

import grimp

from laq.files import digest, md5

_ROOT: Final = Path(__file__).parents[1]
_NAMED: Final = re.compile(r'"(laq(?:\.\w+)+)(?::\w+)?"')
COMPILED: Final = {".pyc", ".nbi", ".nbc"}


def source_files(*modules: str) -> dict[str, str]:
    """The MD5 of each file of ``laq`` that these modules use, by its path from the project's folder.

    A package's data files, such as templates, belong to each of its modules; its ``__init__`` counts where
    something is imported from it, or where it imports nothing itself.
    """
    own = [name for name in _upstream(*modules) if name.partition(".")[0] == "laq"]
    paths = {path for name in own for path in _files_of(name)}
    return {path.relative_to(_ROOT).as_posix(): md5(path) for path in sorted(paths)}


def package_versions(*modules: str) -> dict[str, str]:
    """The version of Python, and of each package that these modules import, by its name in the registry."""
    tops = _upstream(*modules).difference(sys.stdlib_module_names)
    names = {name for top in tops for name in _distributions().get(top, [])[:1]}
    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python, **{name: _version(name) for name in sorted(names)}}


_version = cache(version)
_distributions = cache(packages_distributions)


@cache
def code_digest(*modules: str) -> str:
    """One hash of what ``source_files`` and ``package_versions`` tell."""
    return digest([source_files(*modules), package_versions(*modules)])


@cache
def _upstream(*modules: str) -> frozenset[str]:
    graph = _graph()
    return frozenset(modules).union(*(graph.find_upstream_modules(name) for name in modules))


@cache
def _graph() -> grimp.ImportGraph:
    graph = grimp.build_graph("laq", include_external_packages=True, cache_dir=None)
    for module in graph.find_descendants("laq"):
        for named in set(_NAMED.findall(_path(module).read_text(encoding="utf-8"))) & graph.modules:
            graph.add_import(importer=module, imported=named)
    return graph


def _path(module: str) -> Path:
    path = _ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _files_of(module: str) -> Iterator[Path]:
    """The module, the data files of the package that it lies in, and the packages that import nothing."""
    path = _path(module)
    yield path
    package = module.rpartition(".")[0]
    while package != "laq" and package:
        if not _graph().find_modules_directly_imported_by(package):
            yield _path(package)
        package = package.rpartition(".")[0]
    if path.parent != _ROOT / "laq":
        yield from (f for f in path.parent.rglob("*") if f.is_file() and f.suffix not in {".py", *COMPILED})
