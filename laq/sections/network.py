"""The sections ``network`` and ``finetune``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from laq.sections.base import Count, Positive, Section, Seed, Sha256

Colour = tuple[float, float, float]
Spread = Annotated[float, Field(gt=0)]


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

    source: Literal["train", "file", "hub"]
    architecture: str
    input_size: Positive = 32
    mean: Colour | None = None
    std: tuple[Spread, Spread, Spread] | None = None
    weights: str | None = None
    sha256: Sha256 | None = None
    training: Training | None = None

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Self:
        if self.source == "train" and self.training is None:
            raise ValueError("source train needs the section training")
        if self.source == "file" and None in {self.weights, self.sha256}:
            raise ValueError("source file needs weights (the path of a state dict) and its sha256")
        if self.source == "hub" and not self.architecture.startswith(("timm:", "torchhub:")):
            raise ValueError("source hub needs an architecture timm:NAME or torchhub:OWNER/REPO:MODEL")
        if self.source == "hub" and self.mean is None:
            raise ValueError("source hub needs the mean and std that its weights were trained with")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std together, or neither (then: the training images')")
        return self
