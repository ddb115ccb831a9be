"""The settings of reports."""

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt

from pipeline.core.params import Distinct, Section


def _rising(part: list[int]) -> list[int]:
    if part[0] >= part[1]:
        raise ValueError(f"expected the first image and the one after the last, received {part}")
    return part


Part = Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2), AfterValidator(_rising)]


class DatasetReport(Section):
    """What is known about the test images of a data set.

    ``parts`` are shown by themselves: a name, and the first image and the one after the last.
    ``label_errors`` are images whose label is confirmed to be wrong; they are marked, and a second
    figure leaves them out.
    """

    parts: dict[str, Part] = Field(default={})
    label_errors: Distinct[NonNegativeInt] | None = None


class Report(Section):
    """What the report shows."""

    mistakes_shown: NonNegativeInt
