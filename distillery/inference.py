"""Running an ONNX file on prepared rows; no PyTorch takes part."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from distillery.columns import Columns
from distillery.errors import UserError

OUTPUT = "logits"

Feed = dict[str, npt.NDArray[np.generic]]


def open_session(file: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Loads an ONNX file for the processor.

    Args:
        file: the model.
        threads: within an operator; 0 takes all cores.

    Raises:
        UserError: where the file is missing or no model.
    """
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A pool that spins between two calls would slow down whatever else is being timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's exceptions share no base class that it exports.
        raise UserError(
            f"{file} cannot be loaded by ONNX Runtime ({error}); run `python -m flows run export`"
        ) from None


def feed(columns: Columns, rows: slice | npt.NDArray[np.int64]) -> Feed:
    """Raw inputs of some rows, by name."""
    return {name: tensor.numpy() for name, tensor in zip(columns.inputs, columns.gather(rows), strict=True)}


def logits(
    session: onnxruntime.InferenceSession, rows: Mapping[str, npt.NDArray[np.generic]]
) -> npt.NDArray[np.float32]:
    """(B, C) for one batch."""
    result: npt.NDArray[np.float32] = session.run([OUTPUT], dict(rows))[0]
    return result


def predict(session: onnxruntime.InferenceSession, columns: Columns, batch_size: int = 512) -> npt.NDArray[np.float32]:
    """(N, C) logits of all rows, batch by batch."""
    if not len(columns):
        return np.empty((0, columns.schema.outputs), dtype=np.float32)
    return np.concatenate(
        [logits(session, feed(columns, slice(at, at + batch_size))) for at in range(0, len(columns), batch_size)]
    )
