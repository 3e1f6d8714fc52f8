"""Stage ``dataset``: labelled images of one size, from the sources of the registry.

What needs torch is imported when it is first used (PEP 562): ``laq.params`` reads the registry.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from laq.dataset.registry import Dataset, Needs
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


def run(params: Dataset, needs: Needs = Needs(), jobs: int | None = None) -> str:  # noqa: B008 (frozen)
    """Write the images, labels and names of the dataset, and a manifest (``laq.dataset.layout``).

    Args:
        params: the section ``dataset``.
        needs: what the study needs of the images.
        jobs: how many threads decode pictures; one for each core by default.

    Returns:
        What the dataset holds, in lines.

    Raises:
        LaqError: the source is missing, is not what it must be, or holds less than the study needs.
    """
    import joblib  # noqa: PLC0415 (so that the command line starts without it and NumPy)

    from laq.dataset.counts import check_counts, describe  # noqa: PLC0415 (likewise)
    from laq.dataset.layout import write_manifest  # noqa: PLC0415 (likewise)

    with replacing_folder(FOLDER) as folder:
        with joblib.parallel_config("threading", n_jobs=jobs or joblib.cpu_count()):
            told = params.source.write(folder, params.options)
        manifest = write_manifest(folder, params.name, told)
        check_counts(manifest, told.class_names, needs)
    return describe(manifest)
