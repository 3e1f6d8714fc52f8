"""The sections ``network`` and ``finetune``."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from laq.sections.base import Count, Deviation, Mean, Positive, Section, Seed, Sha256, Text

_NEEDED: Final = {"train": ["training"], "file": ["weights", "sha256"], "hub": ["mean", "std"]}
# What each source cannot do without, for editors; the section checks it below.
_CONDITIONS: Final[dict[str, Any]] = {
    "allOf": [
        {"if": {"properties": {"source": {"const": source}}}, "then": {"required": keys}}
        for source, keys in _NEEDED.items()
    ],
    "dependentRequired": {"mean": ["std"], "std": ["mean"]},
}


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


class Network(Section):
    """The network under study and where its weights come from."""

    model_config = ConfigDict(json_schema_extra=_CONDITIONS)

    source: Literal["train", "file", "hub"]
    architecture: Text
    input_size: Annotated[int, Field(ge=1, le=4096)] = 32
    mean: Mean | None = None
    std: Deviation | None = None
    weights: Text | None = None
    sha256: Sha256 | None = None
    training: Training | None = None

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Self:
        if self.source == "train" and self.training is None:
            raise ValueError("training: missing; must be given where source is train")
        if self.source == "file" and self.weights is None:
            raise ValueError("weights: missing; must be the path of a state dict where source is file")
        if self.source == "file" and self.sha256 is None:
            raise ValueError("sha256: missing; must be that of the weights where source is file")
        if self.source == "hub" and not self.architecture.startswith(("timm:", "torchhub:")):
            allowed = "timm:NAME or torchhub:OWNER/REPO:MODEL where source is hub"
            raise ValueError(f"architecture: found {self.architecture!r}; must be {allowed}")
        if self.source == "hub" and self.mean is None:
            raise ValueError(
                "mean: missing; must be the one that the hub's weights were trained with, as must std"
            )
        if (self.mean is None) != (self.std is None):
            absent = "mean" if self.mean is None else "std"
            raise ValueError(f"{absent}: missing; give both mean and std, or neither: the images' are taken")
        return self
