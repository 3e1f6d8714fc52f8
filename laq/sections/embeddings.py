"""The section ``embeddings``."""

from typing import Annotated, Any, Final, Self

from pydantic import ConfigDict, Field, model_validator

from laq.sections.architecture import architecture, takes_arguments
from laq.sections.base import Checked, Deviation, Mean, Section

OWN: Final = "own"
_OF_OTHERS: Final = ("input_size", "mean", "std")  # which the study's own network has already
# The same for editors; the section checks it below.
_CONDITIONS: Final[dict[str, Any]] = {
    "dependentRequired": {"mean": ["std"], "std": ["mean"]},
    "if": {"properties": {"network": {"const": OWN}}},
    "then": {"properties": {key: {"type": "null"} for key in _OF_OTHERS}},
}


class Embeddings(Section):
    """Whose penultimate features stand for an image.

    ``own``: the study's network; else another one with the weights that it comes with, called with
    ``arguments``. ``input_size``, ``mean`` and ``std`` are what these weights were trained with, where the
    network's source does not tell or something else is wanted; ``own`` has those of the section ``network``.
    """

    model_config = ConfigDict(json_schema_extra=_CONDITIONS)

    network: Annotated[str, Checked(architecture(OWN))]
    arguments: dict[str, Any] = Field(default_factory=dict)
    input_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    mean: Mean | None = None
    std: Deviation | None = None

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.arguments and (self.network == OWN or not takes_arguments(self.network)):
            raise ValueError(f"arguments: found {self.arguments}; {self.network} takes none")
        for key in _OF_OTHERS if self.network == OWN else ():
            if (found := getattr(self, key)) is not None:
                told = list(found) if isinstance(found, tuple) else found
                known = "must be left out where network is own: the section network tells it"
                raise ValueError(f"{key}: found {told}; {known}")
        return self

    @model_validator(mode="after")
    def _mean_and_std_go_together(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"{'mean' if self.mean is None else 'std'}: missing; give both mean and std")
        return self
