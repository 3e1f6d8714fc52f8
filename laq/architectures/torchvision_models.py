"""Torchvision's classifiers, and their ImageNet weights."""

import sys
from typing import Any, Final

import torch
from torch import nn

from laq.architectures.registry import NetworkRequest, Usual
from laq.errors import LaqError
from laq.quantization.options import nearest_name

# The auxiliary heads serve training from scratch alone and never run at inference.
_WITHOUT_WEIGHTS: Final[dict[str, dict[str, Any]]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
# Their weights were trained on pixels in -1..1; torchvision's networks change inputs to that by themselves,
# but only when they are made with weights.
_CENTRED: Final = (0.5, 0.5, 0.5)


def make(request: NetworkRequest) -> nn.Module:
    """Build a torchvision classifier.

    Raises:
        LaqError: there is none of that name, or its weights cannot be downloaded.
    """
    import torchvision  # noqa: PLC0415 (takes seconds, and most networks need none)

    _check_known(request)
    if not request.pretrained:
        outputs = {} if request.outputs is None else {"num_classes": request.outputs}
        options = _WITHOUT_WEIGHTS.get(request.name, {}) | outputs | dict(request.arguments)
        made: nn.Module = torchvision.models.get_model(request.name, weights=None, **options)
        return made
    weights = torchvision.models.get_model_weights(request.name).DEFAULT
    try:
        network: nn.Module = torchvision.models.get_model(request.name, weights=weights, **request.arguments)
    except (OSError, RuntimeError) as error:
        raise LaqError(
            f"the ImageNet weights of {request.architecture} cannot be downloaded ({error}); "
            f"put {weights.url.rsplit('/', 1)[1]} into {torch.hub.get_dir()}/checkpoints"
        ) from error
    if request.name in _WITHOUT_WEIGHTS:
        network.transform_input = False  # type: ignore[assignment]  # a plain attribute
    return network


def usual(request: NetworkRequest) -> Usual:
    """What the ImageNet weights were trained with.

    Raises:
        LaqError: torchvision has no such classifier.
    """
    import torchvision  # noqa: PLC0415 (takes seconds, and most networks need none)

    _check_known(request)
    weights = torchvision.models.get_model_weights(request.name).DEFAULT
    views = weights.transforms()
    centred = request.name in _WITHOUT_WEIGHTS
    return Usual(
        views.crop_size[0],
        _CENTRED if centred else tuple(views.mean),
        _CENTRED if centred else tuple(views.std),
        tuple(weights.meta["categories"]),
    )


def _check_known(request: NetworkRequest) -> None:
    import torchvision  # noqa: PLC0415 (takes seconds, and most networks need none)

    known = torchvision.models.list_models(module=sys.modules["torchvision.models"])
    if request.name not in known:
        hint = nearest_name(request.name, known)
        raise LaqError(
            f"network.architecture: found {request.architecture!r}; must be a classifier of torchvision{hint}"
        )
