"""Exits of a network: linear heads behind its stages, each saying what the network would say if it ended there.

Zhang et al. 2019, "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
Distillation". There bottleneck blocks stand in front of the heads; here a head is an average over the map and a linear
layer, so that an exit that is kept costs next to nothing.

Heads hang on the stages by hooks, and no model is rewritten: a head runs when its stage has run.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distillery.errors import UserError
from distillery.features import default_layers, feature_shapes
from distillery.models import Network

NAME = "early_exits"


class Head(nn.Module):
    """A map is averaged over space; a linear layer decides."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C) to (B, O)."""
        pooled = features.mean((2, 3)) if features.dim() == 4 else features
        outputs: Tensor = self.linear(pooled)
        return outputs


class Exits(nn.ModuleList):
    """The heads, shallow to deep, each behind a stage of the body."""

    def __init__(self, body: nn.Module, stages: Sequence[str], heads: Sequence[Head]) -> None:
        super().__init__(heads)
        self._handles: list[RemovableHandle] = [
            body.get_submodule(stage).register_forward_hook(partial(_run, head))
            for stage, head in zip(stages, heads, strict=True)
        ]

    def unhook(self) -> None:
        """The stages no longer run the heads."""
        for handle in self._handles:
            handle.remove()


def _run(head: Head, module: nn.Module, arguments: Any, output: Tensor) -> None:
    head(output)


def stages_with_exit(network: Network) -> tuple[str, ...]:
    """Every stage but the last, behind which the network's own head stands.

    Raises:
        UserError: where there is none.
    """
    stages = default_layers(network)[:-1]
    if not stages:
        raise UserError(
            f"model {network.config.name} has a single stage, and exits stand behind every stage but the last: "
            "take a deeper model"
        )
    return stages


def add_exits(network: Network, seed: int) -> None:
    """Gives a network an exit behind every stage but the last; `Network.exits` tells their paths.

    Args:
        network: its body tells its stages.
        seed: of the heads' random weights; sets torch's global random state.

    Raises:
        UserError: where the body has no two stages, or one of them puts out neither a map nor a vector.
    """
    stages = stages_with_exit(network)
    if hasattr(network.body, NAME):
        raise UserError(f"model {network.config.name} has a module {NAME!r} of its own: rename it")
    torch.manual_seed(seed)
    heads = []
    for stage, shape in feature_shapes(network, stages).items():
        if len(shape) not in (1, 3):
            raise UserError(f"the stage {stage} puts out {shape}; an exit reads vectors (D,) and maps (C, H, W)")
        heads.append(Head(shape[0], network.schema.outputs))
    network.body.add_module(NAME, Exits(network.body, stages, heads))
    network.exits = tuple(f"{NAME}.{number}" for number in range(len(heads)))


def drop_exits(network: Network) -> None:
    """Leaves the network as it was before `add_exits`, its weights aside."""
    exits = network.body.get_submodule(NAME)
    assert isinstance(exits, Exits)
    exits.unhook()
    delattr(network.body, NAME)
    network.exits = ()


class _UpTo(nn.Module):
    """A body that says what one of its modules puts out."""

    def __init__(self, body: nn.Module, path: str) -> None:
        super().__init__()
        self.body = body
        self._said: list[Tensor] = []
        body.get_submodule(path).register_forward_hook(self._keep)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The body's inputs to the module's output; what comes behind it is left out of an ONNX graph."""
        self.body(*inputs)
        return self._said.pop()

    def _keep(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self._said[:] = [output]


def shortened(network: Network, number: int) -> Network:
    """The network as it is where it ends at an exit; the weights are shared.

    Args:
        network: one with exits.
        number: of the exit, 1 for the shallowest.
    """
    path = network.exits[number - 1]
    short = Network(_UpTo(network.body, path), network.schema, network.config, normalise=network.normalised)
    short.inputs = network.inputs
    return short.eval()
