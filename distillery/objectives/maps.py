"""Feature maps of student and teacher brought to a common form."""

import torch
from torch import Tensor
from torch.nn import functional

from distillery.errors import UserError
from distillery.objectives.objective import Setting, Shape

MapShape = tuple[int, int, int]


def pairs(setting: Setting, method: str) -> list[tuple[str, str]]:
    """Names of the student's and the teacher's layers, shallow to deep.

    Raises:
        UserError: where they cannot be paired or a layer is neither a vector nor a map.
    """
    if not setting.student or len(setting.student) != len(setting.teacher):
        raise UserError(
            f"{method}: {len(setting.student)} student layers cannot be paired with {len(setting.teacher)} teacher "
            "layers; name as many of both (layers)"
        )
    for side, shapes in (("student", setting.student), ("teacher", setting.teacher)):
        for name, shape in shapes.items():
            if len(shape) not in (1, 3):
                raise UserError(
                    f"{method}: the {side}'s layer {name} puts out {shape}; it reads vectors (D,) and maps (C, H, W)"
                )
    return list(zip(setting.student, setting.teacher, strict=True))


def map_shape(shape: Shape) -> MapShape:
    """(C, H, W) as it is, (D,) as (D, 1, 1)."""
    channels, height, width = shape if len(shape) == 3 else (*shape, 1, 1)
    return channels, height, width


def common_size(student: Shape, teacher: Shape) -> tuple[int, int]:
    """The smaller height and the smaller width of two features."""
    (_, *left), (_, *right) = map_shape(student), map_shape(teacher)
    return min(left[0], right[0]), min(left[1], right[1])


def as_map(feature: Tensor) -> Tensor:
    """(B, C, H, W) as it is, (B, D) as (B, D, 1, 1), so that a linear layer is a 1x1 convolution; at least float32."""
    feature = feature.float() if feature.dtype in (torch.float16, torch.bfloat16) else feature
    return feature if feature.dim() == 4 else feature[:, :, None, None]


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pools (B, *, H, W) maps to the smaller height and the smaller width of the two."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return pool(student, size), pool(teacher, size)


def pool(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of (B, C, H, W) to (B, C, *size), with a gradient that is the same in every run.

    PyTorch's own adds gradients up in any order on a GPU, and a run must resume bit for bit.
    """
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        return functional.avg_pool2d(maps, (height // size[0], width // size[1]))
    return _averages(height, size[0], maps) @ maps @ _averages(width, size[1], maps).T


def _averages(before: int, after: int, like: Tensor) -> Tensor:
    """(after, before) matrix whose rows average the cells that adaptive pooling averages."""
    return functional.adaptive_avg_pool1d(torch.eye(before, dtype=like.dtype, device=like.device), after).T
