"""Activations inside a network, by the path of a module: captured with hooks, no model is rewritten.

A path is what `body.named_modules()` calls a module, without `body.` in front: `trunk.stage2` in the built-in ResNet,
`layer3.1.relu` in a user's own. What a user's model is made of may be told in an attribute of its body,
`stages: tuple[str, ...]`, the paths of the modules that end a stage, shallow to deep; then no layer must be named.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distillery.errors import UserError
from distillery.models.network import Network

SHOWN = 80


class Capture:
    """Keeps what some modules of a network put out in its latest forward pass.

    The hooks sit on the modules of the network itself, so they also fire where the network is called through a
    wrapper (`accelerate`, `DistributedDataParallel`). A module that runs several times in one pass is captured at its
    last time. Used as a context manager, it removes its hooks at the end.

    Args:
        network: the network, not its wrapper.
        names: paths of modules.

    Raises:
        UserError: where the network has no such module.
    """

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        check_layers(network, names)
        self.names = tuple(names)
        self._outputs: dict[str, tuple[Tensor, int]] = {}
        self._handles: list[RemovableHandle] = [network.register_forward_pre_hook(self._forget)]
        for name in dict.fromkeys(names):
            self._handles.append(network.body.get_submodule(name).register_forward_hook(partial(self._keep, name)))

    @property
    def features(self) -> dict[str, Tensor]:
        """Name -> activation (B, ...) of the latest forward pass, with its gradient; float32 where it was narrower.

        Raises:
            UserError: where a module did not run, or another one has since overwritten its output.
        """
        features = {}
        for name in self.names:
            if name not in self._outputs:
                raise UserError(f"layer {name} did not run when the model was called; name another")
            tensor, version = self._outputs[name]
            if _version(tensor) != version:
                raise UserError(f"the output of layer {name} is changed in place by a later one; name that one instead")
            # Under mixed precision only the model's result is widened, and losses square what they get.
            features[name] = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        return features

    def remove(self) -> None:
        """Takes the hooks off and lets go of the activations."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def _forget(self, module: nn.Module, arguments: Any) -> None:
        """A pass that fails half-way must not leave activations of the one before."""
        self._outputs.clear()

    def _keep(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise UserError(f"layer {name} puts out {type(output).__name__}, not a tensor; name a layer inside it")
        self._outputs[name] = (output, _version(output))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def default_layers(network: Network) -> tuple[str, ...]:
    """The last module of each stage, shallow to deep, as `body.stages` tells them.

    Raises:
        UserError: where the body tells none.
    """
    stages = getattr(network.body, "stages", ())
    if not isinstance(stages, Sequence) or isinstance(stages, str) or not all(isinstance(each, str) for each in stages):
        raise UserError(f"model {network.config.name}: `stages` must be a tuple of module paths, not {stages!r}")
    if not stages:
        raise UserError(
            f"model {network.config.name} has no stages to take features from: name layers, or give its body an "
            f"attribute `stages`; its modules: {_listed(_paths(network))}"
        )
    check_layers(network, stages)
    return tuple(stages)


def pair(student: Sequence[str], teacher: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Pairs default layers of two networks by position, counted from the deepest where one has more."""
    count = min(len(student), len(teacher))
    return tuple(student[len(student) - count :]), tuple(teacher[len(teacher) - count :])


def check_layers(network: Network, names: Sequence[str]) -> None:
    """Tells of a wrong name before anything runs.

    Raises:
        UserError: with names that are close to it, and all that are right.
    """
    paths = _paths(network)
    for name in names:
        if name not in paths:
            close = get_close_matches(name, paths, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else "."
            raise UserError(f"model {network.config.name} has no layer {name!r}{hint} It has: {_listed(paths)}")


def feature_shapes(network: Network, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Name -> shape without the batch, found by two rows of zeros through the network.

    Raises:
        UserError: where a module is missing, does not run or puts out no tensor with a batch.
    """
    place = next(network.inputs.buffers()).device
    rows = [
        torch.zeros((2, *spec.shape), dtype=torch.uint8 if spec.kind == "image" else torch.float32, device=place)
        for spec in network.schema.inputs.values()
    ]
    modes = [(module, module.training) for module in network.modules()]
    try:
        # In eval mode, so that no running statistics move; modes are put back one by one, as parts may be frozen.
        network.eval()
        with Capture(network, names) as capture, torch.no_grad():
            network(*rows)
            features = capture.features
    finally:
        for module, training in modes:
            module.training = training
    for name, tensor in features.items():
        if tensor.dim() < 2 or len(tensor) != 2:
            raise UserError(f"layer {name} puts out {tuple(tensor.shape)} for 2 rows; name a layer with a row for each")
    return {name: tuple(tensor.shape[1:]) for name, tensor in features.items()}


def _paths(network: Network) -> list[str]:
    """Every module that can be named."""
    return [path for path, _ in network.body.named_modules(remove_duplicate=False) if path]


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version
