"""The section ``report``."""

from typing import Annotated

from pydantic import Field

from laq.sections.base import Section, Seed


class Report(Section):
    """How sure to be of what is said.

    No p-value is below 1 / (1 + ``permutations``), and Holm's correction multiplies it by up to the number
    of questions asked at once.
    """

    bootstrap_samples: Annotated[int, Field(ge=100, le=10**6)]
    permutations: Annotated[int, Field(ge=99, le=10**7)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed
