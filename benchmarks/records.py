"""The measurements of the benchmarks, as JSON lines in a file."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(results: Path) -> list[Record]:
    """The records in the file; none if it does not exist."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def commit_of(record: Record) -> str:
    """The abbreviated commit of a record, marked if the code had uncommitted changes."""
    return f"{(record['commit'] or 'unknown')[:9]}{' + changes' * bool(record['dirty'])}"
