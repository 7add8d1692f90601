"""What convolutional models share: a trunk over one image, numbers joined in front of the head."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distillery.errors import UserError
from distillery.schema import Input


class ImageAndNumbers(nn.Module):
    """A trunk reads the image, its map is averaged over space, other inputs join it, a linear head decides.

    Attributes:
        stages: paths of the modules that end a stage, shallow to deep.
    """

    def __init__(
        self,
        trunk: nn.Module,
        stages: tuple[str, ...],
        channels: int,
        image_at: int,
        numbers: int,
        outputs: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stages = tuple(f"trunk.{stage}" for stage in stages)
        self.trunk = trunk
        self.image_at = image_at
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels + numbers, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs (B, *shape), one of them an image, to logits (B, C)."""
        pooled = self.trunk(inputs[self.image_at]).mean((2, 3))
        others = [tensor.flatten(1) for at, tensor in enumerate(inputs) if at != self.image_at]
        logits: Tensor = self.head(self.dropout(torch.cat([pooled, *others], dim=1)))
        return logits


def image_channels(model: str, inputs: Mapping[str, Input]) -> int:
    """The channels of the one image among the inputs.

    Raises:
        UserError: where there is no image or more than one.
    """
    images = [spec for spec in inputs.values() if spec.kind == "image"]
    if len(images) != 1:
        raise UserError(
            f"model {model} reads exactly one image column, the data have {len(images)}; use mlp or your own"
        )
    return images[0].shape[0]


def with_head(
    trunk: nn.Module,
    stages: tuple[str, ...],
    channels: int,
    inputs: Mapping[str, Input],
    outputs: int,
    dropout: float = 0.0,
) -> ImageAndNumbers:
    """Puts the head behind a trunk that ends in `channels` maps; `stages` are children of the trunk."""
    image_at = [spec.kind for spec in inputs.values()].index("image")
    numbers = sum(math.prod(spec.shape) for spec in inputs.values() if spec.kind != "image")
    return ImageAndNumbers(trunk, stages, channels, image_at, numbers, outputs, dropout)
