"""Command ``init``: looks at pictures and at a network, and writes a study of both into ``params.yaml``."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from laq.files import replacing_file
from laq.init.network import inspect_network
from laq.init.pictures import inspect_pictures
from laq.init.study import block_of, design_of, read_without, with_block
from laq.params import load_params
from laq.provenance import watch
from laq.report.rendering import templates
from laq.sections.base import FILE

__all__ = ["Order", "run"]


@dataclass(frozen=True)
class Order:
    """What the study shall be of.

    Attributes:
        pictures: the path of a folder or archive, with a folder of pictures for each class.
        network: an architecture of the registry (``laq.architectures.registry``).
        name: of the study in ``params.yaml``.
        size: pixels a side that pictures are scaled to; None for what the network was trained with.
    """

    pictures: str
    network: str
    name: str
    size: int | None = None


def run(order: Order, *, dry_run: bool = False) -> str:
    """Look at the pictures and the network, and write the study's block unless it is a ``dry_run``.

    The file's other blocks and its comments stay as they are, and the new study becomes the one that runs.
    DVC is told to watch the pictures.

    Returns:
        What was found, in lines.

    Raises:
        LaqError: there is a study of that name, or the pictures or the network cannot be used; then nothing
            is written.
    """
    before = read_without(order.name)
    with TemporaryDirectory(prefix=".laq-partial-", dir=".") as scratch:
        pictures = inspect_pictures(order.pictures, order.network, order.size, Path(scratch))
        network = inspect_network(order.network, pictures)
        after = with_block(before, order.name, block_of(order.name, pictures, network))
        draft = Path(scratch) / FILE.name
        draft.write_text(after, encoding="utf-8")
        study = load_params(draft)
        if not dry_run:
            with replacing_file(FILE) as partial:
                partial.write_text(after, encoding="utf-8")
            watch(study.settings)
    return (
        templates("laq.init")
        .get_template("found.txt")
        .render(
            name=order.name,
            pictures=pictures,
            table=pd.DataFrame(pictures.counts).to_markdown(index=False, tablefmt="simple"),
            network=network,
            design=design_of(pictures, network),
            dry_run=dry_run,
        )
    )
