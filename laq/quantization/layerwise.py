"""For networks that cannot be traced: both networks run from their input for every layer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from laq.quantization.execution import OUTPUTS, Error, Execution, Pair, Stop, total
from laq.quantization.recipe import QuantizationError


class _ReachedError(Exception):
    """Stops a forward pass at a layer, and carries its input out."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs


class Layerwise(Execution):
    """The same stops, inputs and errors as in lockstep, at the cost of two passes per layer."""

    def stops(self, chunks: Iterable[Tensor]) -> Iterator[Stop]:
        """Run every chunk up to each layer in turn."""
        numbers = self._keep(chunks)
        for name in self._order():
            with _stopping_at(self.networks.analog, name), _stopping_at(self.networks.quantized, name):
                list(self.pool.map(partial(self._reach, name), numbers))
            yield name, [partial(self._inputs, chunk) for chunk in numbers]
            self.errors[name] = total(self.pool.map(partial(self._layer_error, name), numbers))
        self.errors[OUTPUTS] = total(self.pool.map(self._output_error, numbers))

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
        images: Tensor = self.shelf.look(chunk)["images"]
        return images.clone()

    def _reach(self, name: str, chunk: int) -> None:
        images = self.shelf.take(chunk)["images"]
        inputs = tuple(_input(network, name, images.clone()) for network in self.networks.both())
        self.shelf.put(chunk, {"images": images, "inputs": inputs})

    def _inputs(self, chunk: int) -> Pair:
        return Pair(*self.shelf.look(chunk)["inputs"])

    def _layer_error(self, name: str, chunk: int) -> Error:
        pairs = zip(self.networks.layers(name), self._inputs(chunk), strict=True)
        return Error.of(Pair(*(layer(x) for layer, x in pairs)))

    def _output_error(self, chunk: int) -> Error:
        return Error.of(Pair(*(network(self._images(chunk)) for network in self.networks.both())))


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
