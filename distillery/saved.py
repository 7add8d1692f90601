"""A trained model as a folder of files that cannot run code.

`weights.safetensors` holds parameters and normalisation, `model.json` what they belong to, `history.csv` a line an
epoch, `training.json` a few facts about the training.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distillery import models
from distillery.api import ApiNetwork
from distillery.columns import Columns
from distillery.config import Api, Config, CustomModel, SavedModel, TeacherModel
from distillery.errors import UserError
from distillery.exits import add_exits
from distillery.features import Capture
from distillery.models import Network
from distillery.schema import Schema

FORMAT = 1


class Description(Config):
    """The content of `model.json`.

    Attributes:
        format: of this file.
        model: what the body is built from; an api has none.
        normalised: whether inputs are standardised in front of it.
        schema_: of inputs and targets.
        exits: whether its stages have exits.
        code: of an api, SHA-256 of the file with its function: another one may say something else.
    """

    format: int = FORMAT
    model: TeacherModel
    normalised: bool
    schema_: Schema
    exits: bool = False
    code: str | None = None


def save_model(
    folder: Path, network: Network, history: Sequence[Mapping[str, float]], facts: Mapping[str, float | int | str]
) -> None:
    """Writes the folder.

    Args:
        folder: made where it is missing.
        network: its weights are taken to the CPU in their own precision.
        history: one mapping an epoch, all with the same names.
        facts: what `training.json` tells.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "weights.safetensors")
    description = Description(
        model=network.config,
        normalised=network.normalised,
        schema_=network.schema,
        exits=bool(network.exits),
        code=network.code() if isinstance(network, ApiNetwork) else None,
    )
    (folder / "model.json").write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(dict(facts), indent=2) + "\n", encoding="utf-8")
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(history[0]) if history else ["epoch"])
        writer.writeheader()
        writer.writerows(history)


def load_model(folder: Path) -> Network:
    """Reads the folder.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        UserError: where a file is missing, damaged or does not fit the others.
    """
    try:
        description = Description.model_validate_json((folder / "model.json").read_bytes())
        config = description.model
        assert not isinstance(config, SavedModel), "what was saved is described by what it was built from"
        if isinstance(config, Api):
            return ApiNetwork(config, description.schema_).eval()
        if isinstance(config, CustomModel):
            # The trained weights are beside the description; where the training once began does not matter.
            config = config.model_copy(update={"weights": None})
        network = models.build(config, description.schema_, seed=0)
        if description.exits:
            add_exits(network, seed=0)
        network.load_state_dict(load_file(folder / "weights.safetensors"))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or folder} is missing; run the pipeline first") from None
    except (ValidationError, SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{folder} is no saved model: {error}") from None
    network.normalised = description.normalised
    return network.eval()


def read_description(folder: Path) -> Description:
    """What the model in a folder is, without its weights."""
    return TypeAdapter(Description).validate_json((folder / "model.json").read_bytes())


def digest(folder: Path) -> str:
    """SHA-256 of weights and description: two models with the same digest say the same."""
    total = hashlib.sha256()
    for name in ("model.json", "weights.safetensors"):
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def device() -> torch.device:
    """Where models run: a GPU where there is one, as Accelerate would choose."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def predict(network: Network, columns: Columns, batch_size: int = 512) -> npt.NDArray[np.float32]:
    """Outputs of every row, in order.

    Args:
        network: any model; left in eval mode.
        columns: rows with the model's inputs.
        batch_size: rows at once.

    Returns:
        (N, O) float32: logits, and numbers in their own unit.
    """
    logits = np.empty((columns.shown, network.schema.outputs), dtype=np.float32)
    for rows, block, _ in signal_blocks(network, columns, np.arange(columns.shown), batch_size):
        logits[rows] = block
    return logits


def signal_blocks(
    network: Network, columns: Columns, rows: npt.NDArray[np.int64], batch_size: int, layers: Sequence[str] = ()
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]]:
    """Outputs and features of some rows, block by block.

    Yields:
        (B,) their numbers, (B, O) float32 outputs, and layer -> (B, ...) float32 of the named layers.
    """
    place = device()
    move(network, place).eval()
    read = columns.select(network.schema)
    with Capture(network, layers) as capture:
        for at in range(0, len(rows), batch_size):
            block = rows[at : at + batch_size]
            with torch.inference_mode():
                moved = (tensor.to(place, non_blocking=True) for tensor in read.gather(block))
                outputs = network(*channels_last(moved)).float().cpu().numpy()
                yield block, outputs, {name: value.float().cpu().numpy() for name, value in capture.features.items()}


def move(network: Network, place: torch.device) -> Network:
    """Puts a model on a device, its kernels in the layout in which convolutions are fastest."""
    return network.to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def channels_last(inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Images in the layout in which convolutions are fastest; other inputs as they are."""
    return tuple(
        tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor for tensor in inputs
    )
