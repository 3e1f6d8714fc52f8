"""For networks that cannot be traced: all networks run from their input for every layer."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from laq.quantization.execution.base import OUTPUTS, Error, Execution, Pair, Stop, errors_of, totals
from laq.quantization.execution.offload import IMAGES
from laq.quantization.recipe import QuantizationError


class _ReachedError(Exception):
    """Stops a forward pass at a layer, and carries its input out."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs


class Layerwise(Execution):
    """The same stops, inputs and errors as in lockstep, at the cost of a pass per layer and network."""

    def stops(self, chunks: Iterable[Tensor]) -> Iterator[Stop]:
        """Run every chunk up to each layer in turn."""
        numbers = self._keep(chunks)
        for name in self._order():
            with ExitStack() as stack:
                for network in self.networks.all():
                    stack.enter_context(_stopping_at(network, name))
                self.pool.run(partial(self._reach, name), numbers)
            yield name, self._by_network(self._pair)
            self.errors[name] = totals(self.pool.map(partial(self._layer_errors, name), numbers))
        self.errors[OUTPUTS] = totals(self.pool.map(self._output_errors, numbers))

    def _order(self) -> list[str]:
        """The layers' names in the order of their first calls, with the first images."""
        order: dict[str, None] = {}

        def note(name: str, *_: Any) -> None:
            order.setdefault(name)

        modules = {name: self.networks.analog.get_submodule(name) for name in self.networks.names}
        hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in modules.items()]
        self.networks.analog(self._images(0))
        for hook in hooks:
            hook.remove()
        return list(order)

    def _images(self, chunk: int) -> Tensor:
        """A copy: an operation in place must not reach the images."""
        images: Tensor = self.shelf.look((chunk, IMAGES))["images"]
        return images.clone()

    def _reach(self, name: str, chunk: int) -> None:
        images = self.shelf.look((chunk, IMAGES))["images"]
        for number, network in enumerate(self.networks.all()):
            self.shelf.put((chunk, number), {"inputs": _input(network, name, images.clone())})

    def _pair(self, chunk: int, number: int) -> Pair:
        return Pair(*(self.shelf.look((chunk, side))["inputs"] for side in (0, number)))

    def _layer_errors(self, name: str, chunk: int) -> tuple[Error, ...]:
        layers = enumerate(self.networks.layers(name))
        return errors_of(layer(self.shelf.take((chunk, number))["inputs"]) for number, layer in layers)

    def _output_errors(self, chunk: int) -> tuple[Error, ...]:
        return errors_of(network(self._images(chunk)) for network in self.networks.all())


def _input(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """What the layer, where the network stops, is called with."""
    try:
        network(images)
    except _ReachedError as stop:
        return stop.inputs
    raise QuantizationError(f"layer {name}: some images do not reach it; name it in ignore")


@contextmanager
def _stopping_at(network: nn.Module, name: str) -> Iterator[None]:
    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _ReachedError(args[0])

    hook = network.get_submodule(name).register_forward_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()
