"""A model that reads raw rows and says numbers in their own unit: both travel with the weights and into ONNX."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from distillery.columns import Columns
from distillery.config import Api, ModelConfig
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
        body: takes one float32 tensor (B, *shape) for each input of the schema, in its order; returns outputs (B, O),
            numbers among them in units of their deviation from the mean.
        schema: the inputs and targets.
        config: what the body was built from.
        exits: paths of modules in the body that put out what the network would say if it ended there, shallow to deep.
    """

    output_mean: Tensor
    output_deviation: Tensor

    def __init__(self, body: nn.Module, schema: Schema, config: ModelConfig | Api, *, normalise: bool = True) -> None:
        super().__init__()
        self.body = body
        self.schema = schema
        self.config = config
        self.normalised = normalise
        # A list and not a dictionary: a user's column may be called `items`, or hold a dot.
        self.inputs = nn.ModuleList(Normalise(spec) for spec in schema.inputs.values())
        self.exits: tuple[str, ...] = ()
        self.scaled = normalise and any(target.kind == "number" for target in schema.targets.values())
        if self.scaled:
            # Known from the schema, so they are no part of the weights.
            self.register_buffer("output_mean", self._spread("mean"), persistent=False)
            self.register_buffer("output_deviation", self._spread("deviation"), persistent=False)

    def forward(self, *rows: Tensor) -> Tensor:
        """Raw inputs in the schema's order, each (B, *shape), to outputs (B, O): logits, numbers in their own unit."""
        values = (normalise(tensor) for normalise, tensor in zip(self.inputs, rows, strict=True))
        outputs: Tensor = self.body(*values)
        return self.in_own_unit(outputs)

    def in_own_unit(self, outputs: Tensor) -> Tensor:
        """What the body, or one of its exits, puts out, (B, O), with numbers no longer in units of their deviation."""
        return outputs * self.output_deviation + self.output_mean if self.scaled else outputs

    def _spread(self, name: str) -> Tensor:
        """(O,) mean or deviation of each output; 0 and 1 where it is a logit."""
        return torch.tensor(
            [getattr(target, name) for target in self.schema.targets.values() for _ in range(target.width)]
        )

    def fit_normalisation(self, columns: Columns) -> None:
        """Takes the statistics of every row, labelled or not, block by block."""
        if not self.normalised:
            return
        read = columns.select(self.schema)
        for name, module in zip(self.schema.inputs, self.inputs, strict=True):
            blocks = (read.gather(slice(at, at + BLOCK), [name])[0] for at in range(0, len(read), BLOCK))
            if isinstance(module, Normalise):
                module.fit(blocks)

    @property
    def parameter_count(self) -> int:
        """Trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
