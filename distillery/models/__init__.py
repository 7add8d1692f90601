"""Models by name: built-in ones, or the user's own function.

A built-in is one file with `build(config, inputs, outputs)`, its parameters in `distillery.config`, and one line here.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from distillery.config import CustomModel, ModelConfig
from distillery.errors import UserError
from distillery.models.network import Network
from distillery.schema import Input, Schema

BUILT_IN = ("mlp", "cnn", "resnet")

__all__ = ["BUILT_IN", "Network", "build"]


def build(config: ModelConfig, schema: Schema, seed: int, root: Path = Path()) -> Network:
    """Builds a model with its starting weights.

    Args:
        config: which model.
        schema: its inputs, in order, and its targets.
        seed: of the random starting weights; sets torch's global random state.
        root: the folder that a checkpoint's path is relative to.

    Raises:
        UserError: where the user's function cannot be imported, fails, or its checkpoint does not fit.
    """
    torch.manual_seed(seed)
    normalise = True
    if isinstance(config, CustomModel):
        body = _custom(config, schema.inputs, schema.outputs)
        normalise = config.normalise
        if config.weights is not None:
            _load_checkpoint(body, root / config.weights)
    else:
        module = importlib.import_module(f"distillery.models.{config.name}")
        body = module.build(config, schema.inputs, schema.outputs)
    network = Network(body, schema, config, normalise=normalise)
    _try_out(network)
    return network


def _custom(config: CustomModel, inputs: Mapping[str, Input], outputs: int) -> nn.Module:
    """Calls the user's function with the shape of each input and the number of outputs."""
    module_name, _, function_name = config.name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"model {config.name}: {error}; is the file in custom/ and spelt like this?") from error
    shapes = {name: spec.shape for name, spec in inputs.items()}
    try:
        body = function(shapes, outputs, **config.arguments)
    except Exception as error:
        raise UserError(f"model {config.name}(inputs={shapes}, outputs={outputs}) failed: {error}") from error
    if not isinstance(body, nn.Module):
        raise UserError(f"model {config.name} must return a torch.nn.Module, not {type(body).__name__}")
    return body


def _load_checkpoint(body: nn.Module, file: Path) -> None:
    """Fills a user's model from a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        body.load_state_dict(load_file(file))
    except FileNotFoundError:
        raise UserError(f"model.weights: {file} is missing") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"model.weights: {file} is no safetensors file: {error}") from None
    except RuntimeError as error:
        raise UserError(f"model.weights: {file} does not fit the model: {error}") from None


def _try_out(network: Network) -> None:
    """Two rows of zeros through the model, so that a wrong shape is told now and not after hours."""
    schema = network.schema
    rows = tuple(
        torch.zeros((2, *spec.shape), dtype=torch.uint8 if spec.kind == "image" else torch.float32)
        for spec in schema.inputs.values()
    )
    network.eval()
    try:
        with torch.inference_mode():
            logits = network(*rows)
    except Exception as error:
        shapes = {name: spec.shape for name, spec in schema.inputs.items()}
        raise UserError(f"model {network.config.name} does not take the inputs {shapes}: {error}") from error
    expected = (2, schema.outputs)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"model {network.config.name} must return outputs of shape {expected} for 2 rows, not {given}")
    network.train()
