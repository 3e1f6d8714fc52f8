"""Stage ``dataset``: labelled images of one size, from the sources of the registry.

What needs torch is imported when it is first used (PEP 562): ``laq.params`` reads the registry.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from laq.dataset.registry import Dataset
from laq.files import replacing_folder
from laq.paths import DATASET as FOLDER

if TYPE_CHECKING:
    from laq.dataset.images import ImageSet, read_class_names, read_images, read_manifest

__all__ = ["FOLDER", "ImageSet", "read_class_names", "read_images", "read_manifest", "run"]


def __getattr__(name: str) -> Any:
    """What ``laq.dataset.images`` offers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("laq.dataset.images"), name)


def run(params: Dataset) -> None:
    """Write the images, labels and names of the dataset, and a manifest (``laq.dataset.layout``).

    Raises:
        LaqError: the source is missing, or is not what it must be.
    """
    from laq.dataset.layout import write_manifest  # noqa: PLC0415 (so that the command line starts without NumPy)

    with replacing_folder(FOLDER) as folder:
        write_manifest(folder, params.name, params.source.write(folder, params.options))
