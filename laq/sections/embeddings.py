"""The section ``embeddings``."""

from laq.sections.base import Section


class Embeddings(Section):
    """Whose penultimate features stand for an image.

    ``own``: the study's network; else a torchvision network with its ImageNet weights.
    """

    network: str
