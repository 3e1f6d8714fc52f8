"""Stage ``dataset``: the images, in CIFAR-100's layout.

What needs torch is imported when it is first used (PEP 562): ``laq.params`` reads the registry.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from laq.dataset.registry import Dataset
from laq.files import md5, replacing_folder, write_json
from laq.paths import DATASET as FOLDER

if TYPE_CHECKING:
    from laq.dataset.images import ImageSet, read_class_names, read_images, read_manifest

__all__ = ["FOLDER", "ImageSet", "read_class_names", "read_images", "read_manifest", "run"]

FILES = ("train", "test", "meta")


def __getattr__(name: str) -> Any:
    """What ``laq.dataset.images`` offers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("laq.dataset.images"), name)


def run(params: Dataset) -> None:
    """Write the files train, test and meta, and a manifest with their MD5s."""
    with replacing_folder(FOLDER) as folder:
        params.source.write(folder, params.options)
        hashes = {name: md5(folder / name) for name in FILES}
        write_json(folder / "manifest.json", {"name": params.name, "md5": hashes})
