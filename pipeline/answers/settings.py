"""How pictures become images of a data set."""

from typing import Literal

from pydantic import PositiveInt

from pipeline.core.params import Section


class Pictures(Section):
    """How a data set's makers prepared its images.

    ``longer_side`` is that of the box into which the ink was fitted, in pixels; ``centre`` is what
    is in the middle of the image: the ink's centre of mass, or that of its box.
    """

    longer_side: PositiveInt
    centre: Literal["mass", "box"]
