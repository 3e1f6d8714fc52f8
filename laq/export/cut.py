"""Which rows of a network's classifier are those of some classes."""

from collections.abc import Sequence

from laq.architectures import Classifier, classifier_head
from laq.errors import LaqError
from laq.quantization import Cut


def cut_of(network: Classifier, numbers: Sequence[int]) -> Cut:
    """The classifier's name, and its rows of the classes with these ``numbers``.

    Raises:
        LaqError: the network's last Linear layer is not its classifier.
    """
    head, design = classifier_head(network), network.design
    if head.out_features != design.classes:
        raise LaqError(
            f"{design.architecture} cannot be cut to classes: its last Linear layer has {head.out_features} "
            f"outputs, the network {design.classes}"
        )
    name = next(name for name, module in network.named_modules() if module is head)
    return Cut(name, tuple(numbers))
