"""timm's classifiers, and the weights that their authors published."""

from torch import nn

from laq.architectures.hub_errors import HUB_ERRORS, first_line
from laq.architectures.registry import NetworkRequest, Usual, optional_package
from laq.errors import LaqError
from laq.quantization.options import nearest_name


def make(request: NetworkRequest) -> nn.Module:
    """Build one of timm's networks.

    Raises:
        LaqError: timm is not there or has no such network, or its weights cannot be downloaded.
    """
    timm = optional_package("timm", request)
    _check_known(request)
    # Asked for another number of outputs, timm would replace a pretrained head by a random one.
    head = {} if request.pretrained or request.outputs is None else {"num_classes": request.outputs}
    try:
        network: nn.Module = timm.create_model(
            request.name, pretrained=request.pretrained, **head, **request.arguments
        )
    except HUB_ERRORS as error:
        raise LaqError(f"{request.architecture} cannot be made: {first_line(error)}") from error
    return network


def usual(request: NetworkRequest) -> Usual:
    """What the published weights were trained with."""
    timm = optional_package("timm", request)
    _check_known(request)
    about = timm.models.get_pretrained_cfg(request.name)
    if about is None:  # of a network that lies elsewhere, whose configuration is downloaded with it
        return Usual()
    return Usual(about.input_size[-1], tuple(about.mean), tuple(about.std))


def _check_known(request: NetworkRequest) -> None:
    timm = optional_package("timm", request)
    name = request.name.partition(".")[0]
    if ":" in name or "/" in name or timm.is_model(name):
        return
    hint = nearest_name(name, timm.list_models())
    raise LaqError(f"network.architecture: found {request.architecture!r}; must be a network of timm{hint}")
