"""Random changes of image inputs, on the whole batch at once."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from distillery.config import Augmentation
from distillery.schema import Schema


def augment(
    inputs: Mapping[str, Tensor], schema: Schema, config: Augmentation, generator: torch.Generator
) -> dict[str, Tensor]:
    """Changes every image of a batch, each row by its own draw.

    Args:
        inputs: name -> raw input (B, *shape).
        schema: tells which of them are images.
        config: what may happen.
        generator: on the CPU; the same state gives the same changes on every device.

    Returns:
        Inputs of the same shapes and types.
    """
    if config == Augmentation():
        return dict(inputs)
    return {
        name: _augment_images(tensor, config, generator) if schema.inputs[name].kind == "image" else tensor
        for name, tensor in inputs.items()
    }


def _augment_images(images: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) uint8 to the same."""
    rows = len(images)
    if config.crop < 1.0:
        images = _crop(images, config.crop, torch.rand(rows, 3, generator=generator).to(images.device))
    if config.shift:
        moves = torch.randint(-config.shift, config.shift + 1, (rows, 2), generator=generator).to(images.device)
        images = shift(images, moves)
    if config.flip:
        mirrored = torch.rand(rows, generator=generator).to(images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


def shift(images: Tensor, moves: Tensor) -> Tensor:
    """Moves each image down and right by its own number of pixels; zeros come in at the edge.

    Args:
        images: (B, C, H, W).
        moves: (B, 2) integers, down and right.
    """
    reach = int(moves.abs().max()) if moves.numel() else 0
    padded = functional.pad(images, (reach, reach, reach, reach)).permute(0, 2, 3, 1)
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device)[None, :] + reach - moves[:, :1]
    right = torch.arange(width, device=images.device)[None, :] + reach - moves[:, 1:]
    row = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[row, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


def _crop(images: Tensor, smallest: float, draws: Tensor) -> Tensor:
    """Keeps a window of a random share of height and width at a random place, and resizes it back.

    Args:
        images: (B, C, H, W) uint8.
        smallest: least share kept.
        draws: (B, 3) in 0..1: share, vertical and horizontal place.
    """
    share = smallest + (1 - smallest) * draws[:, 0]
    places = (2 * draws[:, 1:] - 1) * (1 - share)[:, None]
    transform = torch.zeros(len(images), 2, 3, device=images.device)
    transform[:, 0, 0] = transform[:, 1, 1] = share
    transform[:, 0, 2], transform[:, 1, 2] = places[:, 1], places[:, 0]
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    resized = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return resized.round().clamp(0, 255).to(images.dtype)
