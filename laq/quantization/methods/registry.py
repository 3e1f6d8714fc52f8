"""The registry of methods: all that other modules know of a method stands in its entry here.

A new method is a module of this package with a function ``solve``, and an entry in this file. A program can
add one of its own::

    register(Method("mine", "My method", solve, learns_from="nothing"))

Studies, tables and charts also name networks that are tuned as a whole after a method: ``qronos-tuned`` is
tuned to the classes of a subset, ``qronos-tuned-all`` to all classes (``split_name``).

This module imports neither torch nor numba: an entry names its solver, which is imported when it is first
needed.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Literal

from laq.quantization.options import (
    BOOLEAN,
    Option,
    QuantizationError,
    nearest_name,
    number,
    one_of,
    whole_number,
)
from laq.quantization.tuning.settings import Loss

_HERE: Final = __name__.rpartition(".")[0]
LearnsFrom = Literal["nothing", "quantized", "both"]


@dataclass(frozen=True)
class MethodOption:
    """An option of a method's own: what it may be, and its default."""

    allows: Option
    default: Any


@dataclass(frozen=True)
class Look:
    """How charts draw a method.

    Attributes:
        colour: hexadecimal. Those here are by Okabe and Ito, and one by Tol: colour-blind people can
            tell them apart.
        shape: of its marks, as Vega names it, or an SVG path within a square from -1 to 1.
    """

    colour: str = "#000000"
    shape: str = "stroke"


@dataclass(frozen=True)
class Method:
    """A method's entry.

    Attributes:
        name: in ``Recipe``, ``params.yaml`` and tables.
        label: in sentences and charts.
        solver: a function (``LayerProblem``, ``Inputs``, ``Settings``) → ``Solution``, or where to import
            it from, as "module:function".
        learns_from: ``nothing`` but the weights, the inputs of the ``quantized`` network's layers, or those
            of ``both`` networks.
        options: the method's own, by name.
        look: in charts.
        refiner: for a method that learns layers together, a function (``NetworkProblem``) → the layers, or
            where to import it from; it is called once for the network, after the solver for each layer.

    Examples:
        >>> from laq.quantization import METHODS
        >>> METHODS["gptq"].label, METHODS["gptq"].learns_from
        ('GPTQ', 'quantized')
    """

    name: str
    label: str
    solver: Callable[..., Any] | str
    learns_from: LearnsFrom = "both"
    options: Mapping[str, MethodOption] = field(default_factory=dict)
    look: Look = Look()
    refiner: Callable[..., Any] | str | None = None

    def load(self) -> Callable[..., Any]:
        """The solver, imported if need be."""
        return _loaded(self.solver)

    def load_refiner(self) -> Callable[..., Any] | None:
        """The refiner, imported if need be; None if the method has none."""
        return None if self.refiner is None else _loaded(self.refiner)

    def code_digest(self) -> str | None:
        """A hash of the modules of the solver and the refiner; none for this package's, hashed as a whole.

        A function without a file, as in a notebook, has another hash in every process.
        """
        codes = []
        for given in (self.solver, self.refiner):
            if given is None or (isinstance(given, str) and given.startswith(f"{_HERE}.")):
                continue
            function = _loaded(given)
            try:
                codes.append(inspect.getsource(inspect.getmodule(function) or function))
            except (OSError, TypeError):
                codes.append(repr(function))
        return sha256("".join(codes).encode()).hexdigest() if codes else None

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options as they are kept, without defaults.

        Raises:
            ValueError: the method has no such option, or a value is not allowed.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"{self.name}: found {given!r}; must be a map of option names to values")  # noqa: TRY004
        for name in given:
            if name not in self.options:
                known = f"has {', '.join(self.options)}" if self.options else "has none"
                hint = nearest_name(str(name), list(self.options))
                raise ValueError(f"found {name!r}, which {self.name} does not have: it {known}{hint}")
        return {name: self._checked(name, value) for name, value in given.items()}

    def _checked(self, name: str, value: Any) -> Any:
        try:
            return self.options[name].allows(value)
        except ValueError as error:
            raise ValueError(f"{self.name}: {name}: {error}") from None

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options, and the defaults of the others."""
        return {name: option.default for name, option in self.options.items()} | dict(given)


def _loaded(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """A function, or what "module:function" names."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


# What stands after a method's name where the network is tuned: to which classes.
_TUNED: Final[Mapping[str, Loss]] = {"tuned-all": "all", "tuned": "subset"}
_TUNED_SHAPES: Final[Mapping[Loss, str]] = {"all": "arrow", "subset": "wedge"}
_METHODS: Final[dict[str, Method]] = {}
METHODS: Final[Mapping[str, Method]] = MappingProxyType(_METHODS)


def register(method: Method) -> None:
    """Add a method.

    Raises:
        QuantizationError: there is another one of that name, or its name cannot be part of file names.

    Examples:
        >>> from laq.quantization import Method, Recipe, register
        >>> from laq.quantization.methods.registry import unregister
        >>> from laq.quantization.methods.rtn import solve
        >>> register(Method("mine", "My method", solve, learns_from="nothing"))
        >>> Recipe(method="mine").method
        'mine'
        >>> unregister("mine")
    """
    if not method.name.isidentifier() or method.name == "float":
        raise QuantizationError(f"method {method.name!r}: a name has letters, digits and _, and is not float")
    if method.name in _METHODS:
        raise QuantizationError(f"method {method.name!r} is there already; take another name")
    _METHODS[method.name] = method


def unregister(name: str) -> None:
    """Take a method out again."""
    del _METHODS[name]


def find_method(name: Any) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(name, str) or name not in _METHODS:
        hint = nearest_name(str(name), list(_METHODS))
        raise ValueError(f"found {name!r}; must be {', '.join(_METHODS)}{hint}")
    return _METHODS[name]


def split_name(name: str) -> tuple[str, Loss | None]:
    """The method that a study names, and the classes that the network is then tuned to, if it is tuned.

    Examples:
        >>> split_name("gpfq"), split_name("gpfq-tuned"), split_name("gpfq-tuned-all")
        (('gpfq', None), ('gpfq', 'subset'), ('gpfq', 'all'))
    """
    method, _, ending = name.partition("-")
    return (method, _TUNED[ending]) if ending in _TUNED else (name, None)


def name_with(method: str, loss: Loss | None) -> str:
    """The name of networks by a method that are tuned to these classes, or not tuned."""
    return "-".join([method, *(ending for ending, classes in _TUNED.items() if classes == loss)])


def all_names() -> list[str]:
    """All names that a study can give: every method's, followed by those of networks tuned after it."""
    return [name for method in _METHODS for name in (method, *(f"{method}-{ending}" for ending in _TUNED))]


def check_name(name: Any) -> str:
    """The name of a method, or of networks tuned after one.

    Raises:
        ValueError: it is neither.
    """
    known = all_names()
    if not isinstance(name, str) or name not in known:
        allowed = f"{', '.join(_METHODS)}, or one of these with -{' or -'.join(sorted(_TUNED))}"
        raise ValueError(f"found {name!r}; must be {allowed}{nearest_name(str(name), known)}")
    return name


def places() -> dict[str, int]:
    """The order of all names in tables and charts."""
    return {name: place for place, name in enumerate(all_names())}


def sort_methods(names: Iterable[str]) -> list[str]:
    """Some names once each, in their order; those of methods that are not registered here come last."""
    known = places()
    return sorted(set(names), key=lambda name: (known.get(name, len(known)), name))


def label_of(name: str) -> str:
    """What sentences and charts call a method; a name that is not registered, such as float, stays itself."""
    method, loss = split_name(name)
    label = _METHODS[method].label if method in _METHODS else method
    return {None: label, "subset": f"tuned {label}", "all": f"{label} tuned to all classes"}[loss]


def look_of(name: str) -> Look:
    """How charts draw a method, or one that is not registered here; tuned networks have other shapes."""
    method, loss = split_name(name)
    look = _METHODS[method].look if method in _METHODS else Look()
    return look if loss is None else replace(look, shape=_TUNED_SHAPES[loss])


# What the others are compared with: it needs no images.
BASELINE: Final = "rtn"
DEFAULT: Final = "gpfq"
_FORM: Final = {"form": MethodOption(one_of("auto", "residual", "covariance"), "auto")}
_SPARSE: Final = {"threshold": MethodOption(number(least=0), 0.75), **_FORM}
_BUILT_IN: Final = (
    Method(
        "rtn",
        "round-to-nearest",
        "laq.quantization.methods.rtn:solve",
        learns_from="nothing",
        look=Look("#7f7f7f", "cross"),
    ),
    Method(
        "gpfq",
        "GPFQ",
        "laq.quantization.methods.gpfq:solve",
        options=_FORM,
        look=Look("#0072b2", "circle"),
    ),
    Method(
        "sgpfq",
        "SGPFQ",
        "laq.quantization.methods.sgpfq:solve",
        options=_FORM,
        look=Look("#56b4e9", "square"),
    ),
    Method(
        "gpfq_l0",
        "sparse GPFQ (L0)",
        "laq.quantization.methods.sparse_gpfq:solve_l0",
        options=_SPARSE,
        look=Look("#009e73", "triangle-up"),
    ),
    Method(
        "gpfq_l1",
        "sparse GPFQ (L1)",
        "laq.quantization.methods.sparse_gpfq:solve_l1",
        options=_SPARSE,
        look=Look("#cc79a7", "triangle-down"),
    ),
    Method(
        "gptq",
        "GPTQ",
        "laq.quantization.methods.gptq:solve",
        learns_from="quantized",
        look=Look("#e69f00", "triangle-right"),
    ),
    Method(
        "qronos",
        "Qronos",
        "laq.quantization.methods.qronos:solve",
        look=Look("#d55e00", "diamond"),
    ),
    Method(
        "adaround",
        "AdaRound",
        "laq.quantization.methods.adaround:solve",
        options={"iterations": MethodOption(whole_number(1), 1000)},
        look=Look("#f0e442", "triangle-left"),
    ),
    Method(
        "brecq",
        "BRECQ",
        "laq.quantization.methods.rtn:solve",
        options={
            "iterations": MethodOption(whole_number(1), 500),
            "batch_size": MethodOption(whole_number(1), 32),
            "rate": MethodOption(number(above=0), 0.05),
            "fisher": MethodOption(BOOLEAN, True),
        },
        look=Look("#882255", "M0,-1L.25,-.25L1,0L.25,.25L0,1L-.25,.25L-1,0L-.25,-.25Z"),
        refiner="laq.quantization.methods.brecq:refine",
    ),
)
for _method in _BUILT_IN:
    register(_method)
