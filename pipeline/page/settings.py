"""The settings of reports."""

from pydantic import NonNegativeInt

from pipeline.core.params import Section


class Report(Section):
    """What the report shows."""

    mistakes_shown: NonNegativeInt
