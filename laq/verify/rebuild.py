"""What a published study was measured on, made again and checked by its hashes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from laq.architectures import file_of
from laq.dataset import run as write_dataset
from laq.dataset.images import read_manifest
from laq.dataset.layout import MANIFEST
from laq.errors import LaqError
from laq.files import digest, dvc_md5, project_root
from laq.network.published import restore_weights
from laq.network.weights import read_design
from laq.paths import DATASET, DESIGN, NETWORK, SUBSETS
from laq.verify.published import SUBSETS as PUBLISHED_SUBSETS
from laq.verify.published import Published


@contextmanager
def rebuilt(published: Published) -> Iterator[None]:
    """Make a folder with the study's dataset, network and subsets the current one for this block.

    Raises:
        LaqError: one of them cannot be had, or is not what was published.
    """
    root, own, folder = project_root(), DATASET.resolve(), published.folder.resolve()
    place = root / ".laq" / "verify" / digest(published.record)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    before = os.environ.get("DVC_ROOT")
    os.environ["DVC_ROOT"] = str(root)  # relative paths of parameters, and the cache of cells, are from there
    try:
        with chdir(place):
            _put_dataset(published, own)
            _put_network(published, folder)
            shutil.copyfile(folder / PUBLISHED_SUBSETS, SUBSETS)
            _check(published)
            yield
    finally:
        os.environ.pop("DVC_ROOT")
        if before is not None:
            os.environ["DVC_ROOT"] = before
        shutil.rmtree(place)


def is_own_dataset(published: Published, own: Path = DATASET) -> bool:
    """Whether the project's own images are the published ones."""
    return (own / MANIFEST).exists() and read_manifest(own).md5 == published.images.md5


def _put_dataset(published: Published, own: Path) -> None:
    """The project's own images if they are the published ones, or else those that the parameters name."""
    if is_own_dataset(published, own):
        DATASET.parent.mkdir()
        DATASET.symlink_to(own)
    else:
        write_dataset(published.params.dataset)


def _put_network(published: Published, folder: Path) -> None:
    """The network of the source that the parameters name, with the weights that lie beside the results."""
    NETWORK.mkdir(parents=True)
    shutil.copyfile(folder / DESIGN, NETWORK / DESIGN)
    if file := file_of(read_design().architecture):
        shutil.copyfile(folder / file, NETWORK / file)
    restore_weights(folder, published.params.network, NETWORK)


def _check(published: Published) -> None:
    found = {f"{DATASET}/{name}": md5 for name, md5 in read_manifest(DATASET).md5.items()}
    told = {f"{DATASET}/{name}": md5 for name, md5 in published.images.md5.items()}
    for path in (NETWORK, SUBSETS):
        found[str(path)], told[str(path)] = dvc_md5(path), published.hashes.get(str(path), "missing")
    for name, md5 in told.items():
        if found.get(name) != md5:
            raise LaqError(
                f"{published.folder}: {name} is not what was published: its MD5 is {found.get(name)}, "
                f"and was {md5}"
            )
