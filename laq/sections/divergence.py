"""The section ``divergence``."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from laq.sections.base import Positive, Section, Seed, Sha256, different

Alternative = Literal[
    "umap-gaussian", "umap-knn", "pca-gaussian", "pca-knn", "features-gaussian", "features-knn"
]


class Given(Section):
    """A matrix of divergences from elsewhere: a .npy file (from the project's folder) and its hash."""

    path: str
    sha256: Sha256


class Divergence(Section):
    """From features to the divergence of every pair of classes, in the study's own way and in others.

    ``alternatives`` are made of the same features, ``features`` standing for no reduction; ``given`` are
    matrices (C, C) in nats from elsewhere, by name.
    """

    reduction: Literal["umap", "pca", "none"]
    components: Positive
    umap_neighbours: Annotated[int, Field(ge=2)]
    estimator: Literal["gaussian", "knn"]
    knn_neighbours: Positive
    alternatives: Annotated[tuple[Alternative, ...], AfterValidator(different)] = ()
    given: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")], Given] = Field(default_factory=dict)
    seed: Seed

    @property
    def name(self) -> str:
        """The study's own way, named as an alternative would be."""
        return f"{'features' if self.reduction == 'none' else self.reduction}-{self.estimator}"

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if taken := {self.name, *self.alternatives} & set(self.given):
            raise ValueError(
                f"given: {', '.join(sorted(taken))} is the name of a way of its own; take another"
            )
        return self
