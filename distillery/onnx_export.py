"""ONNX files: written from PyTorch, checked against it, and quantised to int8."""

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from distillery.columns import Columns
from distillery.errors import UserError
from distillery.inference import OUTPUT, Feed, feed, logits, open_session, predict
from distillery.models.network import Network
from distillery.schema import Schema

# Rounding may swap two classes of nearly equal logits in a row or two; beyond that the export is wrong.
LARGEST_SHARE_OF_OTHER_CLASS = 0.001
LARGEST_DIFFERENCE = 0.01  # in logits, or in deviations of a number
CALIBRATION_ROWS = 512
_CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Check:
    """How close two versions of a model are on the same rows.

    Attributes:
        largest_difference: of any output, numbers in units of their deviation.
        equal_argmax: share of rows with the same class of every target that has some; None where none has.
    """

    largest_difference: float
    equal_argmax: float | None

    @classmethod
    def of(cls, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32], schema: Schema) -> "Check":
        """Compares (N, O) with (N, O) outputs of the targets of a schema."""
        largest, equal = 0.0, np.ones(len(ours), bool)
        for name, target in schema.targets.items():
            first, second = (outputs[:, schema.part(name)] for outputs in (ours, theirs))
            largest = max(largest, float(np.abs(first - second).max(initial=0.0)) / target.deviation)
            if target.kind == "classes":
                equal &= first.argmax(axis=1) == second.argmax(axis=1)
        has_classes = any(target.kind == "classes" for target in schema.targets.values())
        return cls(largest, float(equal.mean()) if has_classes else None)


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def export(network: Network, file: Path) -> None:
    """Writes a model as ONNX: raw inputs under the schema's names, any batch size, output `logits`.

    The same weights give the same bytes, wherever the project lies.

    Raises:
        UserError: where PyTorch cannot trace the model, or an input has the output's name.
    """
    schema = network.schema
    if OUTPUT in schema.inputs:
        raise UserError(f"an input column is called {OUTPUT!r}, as the model's output is: rename the column")
    rows = tuple(torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in schema.inputs.values())
    batch = torch.export.Dim("batch")
    try:
        with _quiet():
            program = torch.onnx.export(
                network.cpu().eval(),
                rows,
                dynamo=True,
                input_names=list(schema.inputs),
                output_names=[OUTPUT],
                # The forward takes *rows: one argument as torch.export sees it.
                dynamic_shapes=(tuple({0: batch} for _ in rows),),
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        # Tracing runs the user's own code: anything may be raised.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {network.config.name} cannot be exported to ONNX: {reason}\n"
            "Branches that depend on values, and a batch size written into the code, are the usual causes."
        ) from error
    if program is None:
        raise UserError(f"model {network.config.name} cannot be exported to ONNX: the exporter returned nothing")
    model = program.model_proto
    # The exporter notes the source line of every node, with absolute paths: noise, and other bytes in another folder.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    file.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes about optional packages and coming versions from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check(file: Path, expected: npt.NDArray[np.float32], columns: Columns) -> Check:
    """Compares an ONNX file with PyTorch's outputs of the same rows, in whole batches and in small ones.

    Args:
        file: the model.
        expected: (N, O), what PyTorch says of all rows of `columns`.
        columns: the rows, with the inputs that the model reads.

    Raises:
        UserError: where an output is not finite, or more rows than rounding explains get another class.
    """
    if not np.isfinite(expected).all():
        raise UserError(f"{file.stem}: outputs are not finite; its training diverged: lower its learning_rate")
    session = open_session(file)
    got = predict(session, columns)
    if not np.isfinite(got).all():
        raise UserError(f"{file.name}: outputs are finite in PyTorch but not in ONNX Runtime; simplify the model")
    found = Check.of(expected, got, columns.schema)
    other = round((1 - found.equal_argmax) * len(columns)) if found.equal_argmax is not None else 0
    if found.largest_difference > LARGEST_DIFFERENCE and found.equal_argmax is None:
        raise UserError(
            f"{file.name}: outputs differ from PyTorch's by {found.largest_difference:.3g}; "
            "the exporter does not support this model"
        )
    if other > max(1, LARGEST_SHARE_OF_OTHER_CLASS * len(columns)):
        raise UserError(
            f"{file.name}: {other} of {len(columns)} rows get another class than in PyTorch "
            f"(largest difference {found.largest_difference:.3g}); the exporter does not support this model"
        )
    for size in (1, 7):
        few = logits(session, feed(columns, slice(0, size)))
        if few.shape != got[:size].shape or (
            Check.of(few, got[:size], columns.schema).largest_difference > 1e-3 + 1e-3 * float(np.abs(got).max())
        ):
            raise UserError(f"{file.name} answers differently in a batch of {size}; the model mixes rows of a batch")
    return found


class _Calibration:
    """Batches of training rows in the form ONNX Runtime's quantiser reads."""

    def __init__(self, columns: Columns) -> None:
        # Evenly over the split, whatever order the table has.
        rows = np.unique(np.linspace(0, len(columns) - 1, min(CALIBRATION_ROWS, len(columns))).astype(np.int64))
        self._batches = iter(
            [feed(columns, rows[at : at + _CALIBRATION_BATCH]) for at in range(0, len(rows), _CALIBRATION_BATCH)]
        )

    def get_next(self) -> Feed | None:
        """The next batch, None behind the last."""
        return next(self._batches, None)


def quantise(file: Path, target: Path, columns: Columns) -> None:
    """Writes an int8 variant: static, QDQ, weights for each channel, ranges taken from `columns`.

    Unsigned activations with signed weights ran fastest here (twice the float32 speed on a ResNet). Weights keep
    seven bits, because processors without VNNI instructions saturate with eight.

    Raises:
        UserError: where ONNX Runtime cannot quantise the model.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(file, prepared, skip_optimization=True, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                target,
                _Calibration(columns),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{file.name} cannot be quantised: {reason}") from error
