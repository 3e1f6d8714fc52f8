"""The section ``divergence``."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from laq.quantization.options import matching
from laq.sections.base import Checked, Different, Given, Positive, Section, Seed

Alternative = Literal[
    "umap-gaussian", "umap-knn", "pca-gaussian", "pca-knn", "features-gaussian", "features-knn"
]
_NAME: Final = matching(
    r"[A-Za-z0-9][\w.-]{0,59}",
    "a name of at most 60 letters, digits, _, . and -, the first a letter or digit",
)


class Divergence(Section):
    """From features to the divergence of every pair of classes, in the study's own way and in others.

    ``alternatives`` are made of the same features, ``features`` standing for no reduction, and may name the
    study's own way, which is not made twice, so that one key chooses another of them; ``given`` are
    matrices (C, C) in nats from elsewhere, ``.npy`` files by the matrices' names.
    """

    reduction: Literal["umap", "pca", "none"]
    components: Positive
    umap_neighbours: Annotated[int, Field(ge=2)]
    estimator: Literal["gaussian", "knn"]
    knn_neighbours: Positive
    alternatives: Different[Alternative] = ()
    given: dict[Annotated[str, Checked(_NAME)], Given] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": False}
    )
    seed: Seed

    @property
    def name(self) -> str:
        """The study's own way, named as an alternative would be."""
        return f"{'features' if self.reduction == 'none' else self.reduction}-{self.estimator}"

    @property
    def others(self) -> tuple[str, ...]:
        """The alternatives to the study's own way."""
        return tuple(way for way in self.alternatives if way != self.name)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if taken := {self.name, *self.alternatives} & set(self.given):
            raise ValueError(
                f"given: found {', '.join(sorted(taken))}, the name of a way of its own; take another"
            )
        return self
