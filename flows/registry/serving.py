"""Whether a registered model serves: loaded as users load it, it answers the stored example with the stored output."""

import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillery.errors import UserError
from flows.services.processes import Service, free_port, stop
from tasks.promotion.descent import FOLDER
from tasks.tracking.service import default_service, first_line

if TYPE_CHECKING:
    import numpy.typing as npt

OUTPUT = "logits"
SECONDS = 60.0


def check(uri: str, folder: Path, service: str) -> None:
    """Loads a model by ONNX Runtime from its files and by MLflow from the registry, and asks both.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        folder: the downloaded version.
        service: the address of the registry.

    Raises:
        UserError: where one of them does not answer as it did when it was registered.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    from distillery.inference import logits, open_session

    example: Any = Model.load(str(folder)).load_input_example(str(folder))
    _compare(logits(open_session(folder / "model.onnx"), example), folder, "ONNX Runtime")
    try:
        with default_service(service):
            answer = mlflow.pyfunc.load_model(uri).predict(example)[OUTPUT]
    except Exception as error:
        raise UserError(f"MLflow cannot load {uri}: {first_line(error)}") from error
    _compare(answer, folder, "MLflow")


def check_server(root: Path, uri: str, folder: Path, service: str) -> None:
    """Starts `mlflow models serve` and sends it the stored request.

    Raises:
        UserError: where the server does not start, or does not answer as the model did when it was registered.
    """
    server = Service.model(root, free_port(), uri, service)
    try:
        server.wait()
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{server.url}/invocations",
            (folder / "serving_input_example.json").read_bytes(),
            {"Content-Type": "application/json"},
        )
        # Loopback never goes through a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=SECONDS) as response:
            answer = json.load(response)["predictions"][OUTPUT]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"`mlflow models serve` does not answer ({error}); {server.log} may tell why") from error
    finally:
        stop([server])
    _compare(answer, folder, "`mlflow models serve`")


def _compare(answer: "npt.ArrayLike", folder: Path, who: str) -> None:
    """Compares an answer with the stored one; other processors round differently."""
    import numpy as np

    stored: npt.NDArray[np.float32] = np.load(folder / FOLDER / "example_output.npy")
    found = np.asarray(answer, dtype=np.float64)
    if found.shape != stored.shape or not np.allclose(found, stored, rtol=1e-3, atol=1e-3):
        raise UserError(f"{who} answers the stored example with {found.tolist()} instead of {stored.tolist()}")
