"""Fully connected network."""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from distillery.config import Mlp
from distillery.schema import Input


class MlpBody(nn.Module):
    """Flattens and joins all inputs, then alternates linear layers and ReLU.

    Attributes:
        stages: paths of the ReLU behind each hidden layer, shallow to deep.
    """

    def __init__(self, config: Mlp, features: int, outputs: int) -> None:
        super().__init__()
        widths = [features, *config.hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
        self.hidden = nn.Sequential(*layers)
        self.stages = tuple(f"hidden.{at}" for at, layer in enumerate(layers) if isinstance(layer, nn.ReLU))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs (B, *shape) to logits (B, C)."""
        joined = torch.cat([tensor.flatten(1) for tensor in inputs], dim=1)
        logits: Tensor = self.head(self.hidden(joined))
        return logits


def build(config: Mlp, inputs: Mapping[str, Input], outputs: int) -> nn.Module:
    """An MLP over all inputs."""
    return MlpBody(config, sum(math.prod(spec.shape) for spec in inputs.values()), outputs)
