"""A model that reads raw rows: normalisation is inside it, so it travels with the weights and into ONNX."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from distillery.columns import Columns
from distillery.config import ModelConfig
from distillery.schema import Input, Schema

BLOCK = 4096


class Normalise(nn.Module):
    """Standardises one input: images for each channel after scaling to 0..1, numbers for each column."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: Input) -> None:
        super().__init__()
        self.image = spec.kind == "image"
        shape = (spec.shape[0], 1, 1) if self.image else spec.shape
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, *shape), uint8 or float32, to float32 of the same shape."""
        values = rows.float() / 255 if self.image else rows
        return (values - self.mean) / self.deviation

    def fit(self, blocks: Iterator[Tensor]) -> None:
        """Takes mean and deviation of all rows; a constant column is only centred."""
        dims = (0, 2, 3) if self.image else (0,)
        count, total, squares = 0, torch.zeros_like(self.mean).double(), torch.zeros_like(self.mean).double()
        for rows in blocks:
            values = rows.double() / 255 if self.image else rows.double()
            count += values.numel() // total.numel()
            total += values.sum(dims).reshape(total.shape)
            squares += values.square().sum(dims).reshape(total.shape)
        mean = total / count
        # Rounding can leave a tiny difference where a column is constant: that is no deviation.
        variance = (squares / count - mean.square()).clamp_min(0)
        constant = variance <= 1e-10 * (1 + mean.square())
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(constant, torch.ones_like(variance), variance).sqrt())


class Network(nn.Module):
    """A body that reads normalised inputs, and the normalisation in front of it.

    Attributes:
        body: takes one float32 tensor (B, *shape) for each input of the schema, in its order; returns logits (B, C).
        schema: the inputs and classes.
        config: what the body was built from.
    """

    def __init__(self, body: nn.Module, schema: Schema, config: ModelConfig, *, normalise: bool = True) -> None:
        super().__init__()
        self.body = body
        self.schema = schema
        self.config = config
        self.normalised = normalise
        # A list and not a dictionary: a user's column may be called `items`, or hold a dot.
        self.inputs = nn.ModuleList(Normalise(spec) for spec in schema.inputs.values())

    def forward(self, *rows: Tensor) -> Tensor:
        """Raw inputs in the schema's order, each (B, *shape), to logits (B, C)."""
        values = (normalise(tensor) for normalise, tensor in zip(self.inputs, rows, strict=True))
        logits: Tensor = self.body(*values)
        return logits

    def fit_normalisation(self, columns: Columns) -> None:
        """Takes the statistics of every row, labelled or not, block by block."""
        if not self.normalised:
            return
        for name, module in zip(self.schema.inputs, self.inputs, strict=True):
            blocks = (columns.gather(slice(at, at + BLOCK), [name])[0] for at in range(0, len(columns), BLOCK))
            if isinstance(module, Normalise):
                module.fit(blocks)

    @property
    def parameter_count(self) -> int:
        """Trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
