"""What the parameters of every objective share."""

from typing import ClassVar, get_args

from pydantic import Field

from distillery.config import Config, Scheduled
from distillery.schema import Kind


class Objective(Config):
    """One term of the loss.

    Attributes:
        fits: what a target must be for it.
        over_batch: whether its value is one number for a batch, not one for each row, so that a batch cannot be cut.
        weight: in the sum.
    """

    fits: ClassVar[tuple[Kind, ...]] = get_args(Kind)
    over_batch: ClassVar[bool] = False

    weight: Scheduled = Field(1.0)
