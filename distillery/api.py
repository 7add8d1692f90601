"""A teacher that is only asked: a function of the user's, behind which anything may stand, such as a service.

`custom/ask.py`:

    def ask(inputs):  # name -> NumPy array (B, *shape), as stored: images as uint8
        return ...    # (B, O): logits or log-probabilities in the order of the classes, numbers in their own unit
"""

import hashlib
import importlib
import inspect
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distillery.config import Api
from distillery.errors import UserError
from distillery.models.network import Network
from distillery.schema import Schema


class ApiNetwork(Network):
    """A network to those who ask it; it has no weights and no gradient."""

    def __init__(self, config: Api, schema: Schema) -> None:
        """Finds the function, and does not call it.

        Raises:
            UserError: where it cannot be imported.
        """
        super().__init__(nn.Identity(), schema, config, normalise=False)
        self.inputs = nn.ModuleList()
        module_name, _, function_name = config.function.partition(":")
        try:
            self._ask = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"api {config.function}: {error}; is the file in custom/ and spelt like this?") from error

    def code(self) -> str:
        """SHA-256 of the file that holds the function."""
        file = inspect.getsourcefile(self._ask)
        return hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()

    def forward(self, *rows: Tensor) -> Tensor:
        """Raw inputs in the schema's order, each (B, *shape), to what the function says, (B, O) float32.

        Raises:
            UserError: where the function fails, or does not give (B, O) finite numbers.
        """
        name = self.config.function if isinstance(self.config, Api) else ""
        inputs = {name: tensor.cpu().numpy() for name, tensor in zip(self.schema.inputs, rows, strict=True)}
        try:
            said = np.asarray(self._ask(inputs), np.float32)
        except Exception as error:
            # The function is the user's, and what stands behind it may fail in any way.
            raise UserError(f"api {name} failed: {error}; answers so far are kept, run again to go on") from error
        expected = (len(rows[0]), self.schema.outputs)
        if said.shape != expected:
            raise UserError(f"api {name} must return outputs of shape {expected}, not {said.shape}")
        if not np.isfinite(said).all():
            raise UserError(f"api {name} returned numbers that are not finite; of probabilities log(p + 1e-6) is")
        return torch.from_numpy(said).to(rows[0].device)
