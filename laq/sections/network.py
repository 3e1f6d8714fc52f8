"""The sections ``network`` and ``finetune``."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from laq.quantization.options import Option
from laq.sections.architecture import ARCHITECTURE, takes_arguments
from laq.sections.base import Checked, Count, Deviation, Mean, Positive, Section, Seed, Sha256, Text

_NEEDED: Final = {"train": ["training"], "file": ["weights", "sha256"]}
# What each source cannot do without, for editors; the section checks it below.
_CONDITIONS: Final[dict[str, Any]] = {
    "allOf": [
        *(
            {"if": {"properties": {"source": {"const": source}}}, "then": {"required": keys}}
            for source, keys in _NEEDED.items()
        ),
        {
            "if": {"properties": {"source": {"const": "train"}}},
            "then": {"properties": {"outputs": {"type": "null"}, "transfer": {"type": "null"}}},
        },
    ],
    "dependentRequired": {"mean": ["std"], "std": ["mean"]},
}


def _outputs(value: Any) -> Any:
    """The path of a file, or a map of classes to outputs' numbers or names."""
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise TypeError
    numbers = [output for output in value.values() if type(output) is int]
    names = [output for output in value.values() if isinstance(output, str)]
    if len(numbers) + len(names) < len(value) or min(numbers, default=0) < 0:
        raise ValueError
    return value


_OUTPUTS: Final = Option(
    _outputs,
    "the path of a file with the names of all outputs, or a map of classes to outputs' numbers or names",
    {
        "anyOf": [
            {"type": "string", "pattern": "."},
            {
                "type": "object",
                "additionalProperties": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]},
            },
        ]
    },
)


class Training(Section):
    """How to train: one recipe, whatever the network.

    ``bfloat16`` is mixed precision: products in bfloat16, weights and what they learn in float32.
    ``auto`` is a GPU where torch sees one, or else the CPU.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["one_cycle", "constant"]
    epochs: Count
    batch_size: Positive
    crop: Annotated[int, Field(ge=0, le=16)]
    flip: bool
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    seed: Seed


class Transfer(Section):
    """A new head for the dataset's classes, learned from features; with ``training``, then all the network.

    The best epoch of that training is chosen by the dataset's validation images, or else by a share
    ``validation`` of its training images.

    With ``flip``, the head learns from the mirror image of every training image, too.
    """

    flip: bool = False
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    seed: Seed = 0
    training: Training | None = None


class Network(Section):
    """The network under study and where its weights come from.

    ``pretrained`` are the weights that the architecture comes with. ``outputs`` says which of its outputs
    stands for which class: the path of a file with the names of all outputs, or a map of classes to outputs.
    """

    model_config = ConfigDict(json_schema_extra=_CONDITIONS)

    source: Literal["train", "file", "pretrained"]
    architecture: Annotated[str, Checked(ARCHITECTURE)]
    arguments: dict[str, Any] = Field(default_factory=dict)
    input_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    mean: Mean | None = None
    std: Deviation | None = None
    weights: Text | None = None
    sha256: Sha256 | None = None
    outputs: Annotated[str | dict[str, int | str], Checked(_OUTPUTS)] | None = None
    transfer: Transfer | None = None
    training: Training | None = None

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.arguments and not takes_arguments(self.architecture):
            raise ValueError(f"arguments: found {self.arguments}; {self.architecture} takes none")
        return self

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Self:
        if self.source == "train" and self.training is None:
            raise ValueError("training: missing; must be given where source is train")
        if self.source == "file" and self.weights is None:
            raise ValueError("weights: missing; must be the path of a checkpoint where source is file")
        if self.source == "file" and self.sha256 is None:
            raise ValueError("sha256: missing; must be that of the weights where source is file")
        if (self.mean is None) != (self.std is None):
            absent = "mean" if self.mean is None else "std"
            raise ValueError(f"{absent}: missing; give both mean and std, or neither: the images' are taken")
        for key in ("outputs", "transfer"):
            if self.source == "train" and getattr(self, key) is not None:
                raise ValueError(f"{key}: found one; must be left out where source is train")
        if self.outputs is not None and self.transfer is not None:
            raise ValueError(
                "transfer: found one beside outputs; leave one out: a new head has its own outputs"
            )
        return self
