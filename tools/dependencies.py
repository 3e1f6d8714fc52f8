"""Write into dvc.yaml the files of `laq` that each stage uses, as its imports tell (`make dependencies`)."""

from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from laq.imports import COMPILED, source_files

FILE = Path("dvc.yaml")
WIDTH = 110


def compressed(files: Iterable[str]) -> list[str]:
    """The files, those of a folder of which all are there by the folder's name."""
    left = set(files)
    folders = {parent for file in left for parent in Path(file).parents if parent.parent.name}
    found = []
    for folder in sorted(folders, key=lambda path: len(path.parts)):
        every = set(_files_in(folder))
        if every & left and every <= set(files):
            found.append(str(folder))
            left -= every
    return sorted([*found, *left])


def _files_in(folder: Path) -> Iterator[str]:
    return (str(f) for f in folder.rglob("*") if f.is_file() and f.suffix not in COMPILED)


def main() -> None:
    """Rewrite the file; its comments and its order stay."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = WIDTH, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(FILE.read_text(encoding="utf-8"))
    for name, stage in content["stages"].items():
        data = [path for path in stage.get("deps", []) if not path.startswith("laq/")]
        stage["deps"] = [*compressed(source_files(f"laq.{name}")), *data]
    text = StringIO()
    yaml.dump(content, text)
    FILE.write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
