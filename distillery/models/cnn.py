"""Small convolutional network for students."""

from collections.abc import Mapping

from torch import nn

from distillery.config import Cnn
from distillery.models.convolutional import image_channels, with_head
from distillery.schema import Input


def build(config: Cnn, inputs: Mapping[str, Input], outputs: int) -> nn.Module:
    """Blocks of 3x3 convolution, batch normalisation, ReLU and 2x2 max pooling."""
    before = image_channels("cnn", inputs)
    blocks = []
    for after in config.channels:
        blocks.append(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                # Rounding up, so that even a tiny image never shrinks to nothing.
                nn.MaxPool2d(2, ceil_mode=True),
            )
        )
        before = after
    stages = tuple(str(number) for number in range(len(blocks)))
    return with_head(nn.Sequential(*blocks), stages, before, inputs, outputs, config.dropout)
