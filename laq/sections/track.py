"""The section ``track``."""

from typing import Annotated

from pydantic import Field

from laq.sections.base import Section


class Track(Section):
    """What becomes of the results in MLflow's registry of models."""

    champion_kib: Annotated[float, Field(gt=0)]

    @property
    def champion_bytes(self) -> float:
        """The most that the best network of a subset may take."""
        return 1024 * self.champion_kib
