"""What the benchmarks measured, as JSON lines in a file."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(results: Path) -> list[Record]:
    """The records so far."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def commit_of(record: Record) -> str:
    """The commit that a record was made at, short, and whether the code differed from it."""
    return f"{(record['commit'] or 'unknown')[:9]}{' + changes' * bool(record['dirty'])}"
