"""Networks from repositories that torch.hub loads."""

import torch
from torch import nn

from laq.architectures.hub_errors import HUB_ERRORS, first_line
from laq.architectures.registry import NetworkRequest, Usual
from laq.errors import LaqError


def make(request: NetworkRequest) -> nn.Module:
    """Load ``OWNER/REPO:MODEL``, whose function takes ``pretrained``.

    Raises:
        LaqError: it cannot be loaded.
    """
    repository, _, model = request.name.partition(":")
    try:
        loaded: nn.Module = torch.hub.load(  # type: ignore[no-untyped-call]
            repository, model, pretrained=request.pretrained, trust_repo=True, **request.arguments
        )
    except HUB_ERRORS as error:
        raise LaqError(f"{request.architecture} cannot be loaded: {first_line(error)}") from error
    return loaded


def usual(request: NetworkRequest) -> Usual:  # noqa: ARG001 (the registry's call)
    """Nothing: repositories do not tell."""
    return Usual()
