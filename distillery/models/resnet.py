"""Residual network as used on CIFAR (He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2)."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from distillery.config import Resnet
from distillery.models.convolutional import image_channels, with_head
from distillery.schema import Input


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 projection where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.activation = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H / stride, W / stride)."""
        result: Tensor = self.activation(self.residual(maps) + self.shortcut(maps))
        return result


def build(config: Resnet, inputs: Mapping[str, Input], outputs: int) -> nn.Module:
    """A stem and three stages of (depth - 2) / 6 blocks with width, 2 width and 4 width channels."""
    stem = nn.Sequential(
        nn.Conv2d(image_channels("resnet", inputs), config.width, 3, padding=1, bias=False),
        nn.BatchNorm2d(config.width),
        nn.ReLU(),
    )
    parts: list[tuple[str, nn.Module]] = [("stem", stem)]
    before = config.width
    for number, stride in enumerate((1, 2, 2)):
        after = config.width * 2**number
        blocks = [Block(before, after, stride)]
        blocks += [Block(after, after, 1) for _ in range((config.depth - 2) // 6 - 1)]
        parts.append((f"stage{number + 1}", nn.Sequential(*blocks)))
        before = after
    stages = tuple(name for name, _ in parts[1:])
    return with_head(nn.Sequential(OrderedDict(parts)), stages, before, inputs, outputs)
