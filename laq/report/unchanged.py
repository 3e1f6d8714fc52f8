"""Whether the files of a published folder are still those that were published."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from laq.errors import LaqError
from laq.files import md5

PROVENANCE: Final = "provenance.json"
FILES: Final = "files"  # in the record: the MD5 of every other file, by its name


def hash_files(folder: Path) -> dict[str, str]:
    """The MD5 of every file of a folder but the record, which keeps them, by name."""
    return {path.name: md5(path) for path in sorted(folder.iterdir()) if path.name != PROVENANCE}


def changed_files(folder: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each file that is not what ``record`` tells; former records tell of none.

    Raises:
        LaqError: the record does not give the hashes by the files' names.
    """
    recorded, found = record.get(FILES, {}), hash_files(folder)
    if not isinstance(recorded, dict):
        raise LaqError(f"{folder / PROVENANCE}: {FILES}: found {recorded!r}; must give MD5s by files' names")
    for name, hashed in recorded.items():
        if name not in found:
            yield f"{name} was taken away after it was published"
        elif found[name] != hashed:
            yield f"{name} was changed after it was published: its MD5 is {found[name]}, and was {hashed}"
