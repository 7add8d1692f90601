"""Changes of image inputs, on the whole batch at once: what is drawn for each row, and what is made of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from distillery.config import Augmentation
from distillery.schema import Schema


@dataclass(frozen=True)
class Draws:
    """What happens to each image of a batch.

    Attributes:
        window: (B, 3) float32 in 0..1: share of height and width kept, vertical and horizontal place; None: no crop.
        moves: (B, 2) int64, pixels down and right; None: no shift.
        mirrored: (B,) bool; None: no flip.
    """

    window: Tensor | None = None
    moves: Tensor | None = None
    mirrored: Tensor | None = None


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
    return change(inputs, schema, config, lambda name: _drawn(len(inputs[name]), config, generator))


def change(
    inputs: Mapping[str, Tensor], schema: Schema, config: Augmentation, draw: Callable[[str], Draws]
) -> dict[str, Tensor]:
    """Applies draws to every image of a batch; an image is a function of its own draws alone, bit for bit.

    Args:
        inputs: name -> raw input (B, *shape).
        schema: tells which of them are images.
        config: by which the draws were made.
        draw: the draws for the image input of that name.
    """
    return {
        name: _changed(tensor, config, draw(name)) if schema.inputs[name].kind == "image" else tensor
        for name, tensor in inputs.items()
    }


def _drawn(rows: int, config: Augmentation, generator: torch.Generator) -> Draws:
    """As they come from a generator."""
    window = torch.rand(rows, 3, generator=generator) if config.crop < 1.0 else None
    moves = torch.randint(-config.shift, config.shift + 1, (rows, 2), generator=generator) if config.shift else None
    mirrored = torch.rand(rows, generator=generator) < 0.5 if config.flip else None
    return Draws(window, moves, mirrored)


def _changed(images: Tensor, config: Augmentation, draws: Draws) -> Tensor:
    """(B, C, H, W) uint8 to the same."""
    if draws.window is not None:
        images = _crop(images, config.crop, draws.window.to(images.device))
    if draws.moves is not None:
        images = shift(images, draws.moves.to(images.device))
    if draws.mirrored is not None:
        images = torch.where(draws.mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
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
    share = smallest + (1 - smallest) * draws[:, :1]
    place = (2 * draws[:, 1:] - 1) * (1 - share)
    height, width = images.shape[2:]
    # Element by element: a matrix product may round by the size of the batch.
    down = share * _centres(height, images.device) + place[:, :1]
    right = share * _centres(width, images.device) + place[:, 1:]
    grid = torch.stack([right[:, None, :].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], dim=3)
    resized = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return resized.round().clamp(0, 255).to(images.dtype)


def _centres(size: int, place: torch.device) -> Tensor:
    """(size,) where pixels lie between -1 and 1."""
    return (2 * torch.arange(size, device=place) + 1) / size - 1
