"""Stage ``dataset``: the images, in CIFAR-100's layout."""

from pathlib import Path

from laq.dataset.cifar100 import fetch_cifar100
from laq.dataset.glyphs import write_glyphs
from laq.dataset.images import FILES, ImageSet, read_class_names, read_images, read_manifest
from laq.files import md5, replacing_folder, write_json
from laq.params import Dataset

__all__ = ["FOLDER", "ImageSet", "read_class_names", "read_images", "read_manifest", "run"]

FOLDER = Path("data/dataset")


def run(params: Dataset) -> None:
    """Write the files train, test and meta, and a manifest with their MD5s."""
    with replacing_folder(FOLDER) as folder:
        if params.name == "cifar100":
            fetch_cifar100(folder)
        else:
            write_glyphs(folder, *params.drawing())
        write_json(
            folder / "manifest.json",
            {"name": params.name, "md5": {name: md5(folder / name) for name in FILES}},
        )
