"""Parameters of objectives over the graph that a batch makes."""

from typing import ClassVar, Literal

from pydantic import Field

from distillery.objectives.configs.feature import Feature


class Irg(Feature):
    """Match the instance relationship graph and its change between layers (Liu et al. 2019)."""

    over_batch: ClassVar[bool] = True

    name: Literal["irg"]
    vertex_weight: float = Field(0.1, ge=0.0, description="of the outputs of each row")
    edge_weight: float = Field(5.0, ge=0.0, description="of the distances between rows, at each layer")
    transformation_weight: float = Field(5.0, ge=0.0, description="of their change from each layer to the next")
