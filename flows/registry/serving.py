"""Whether a registered model serves: loaded as users load it, it answers the stored example with the stored output."""

import json
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from distillery.errors import UserError
from flows.services.processes import Service, free_port, stop
from tasks.folders import STATE
from tasks.promotion.descent import FOLDER
from tasks.tracking.service import default_service, first_line

if TYPE_CHECKING:
    import numpy.typing as npt

OUTPUT = "logits"
SECONDS = 60.0
LOADER = "mlflow.onnx"
# Where MLflow would take Python from: a folder of the model put on the path, or a script.
CODE = ("code", "model_code_path")


def check(root: Path, uri: str, folder: Path, service: str) -> None:
    """Loads a model by ONNX Runtime from its files and by MLflow from the registry, and asks both.

    Args:
        root: the project's folder.
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        folder: the downloaded version.
        service: the address of the registry.

    Raises:
        UserError: where one of them does not answer as it did when it was registered, or MLflow would run code for it.
    """
    import mlflow.pyfunc
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    from distillery.inference import logits, open_session

    require_harmless(folder)
    example: Any = Model.load(str(folder)).load_input_example(str(folder))
    _compare(logits(open_session(folder / "model.onnx"), example), folder, "ONNX Runtime")
    try:
        with default_service(service), TemporaryDirectory(dir=root / STATE) as place:
            # Looked at and then loaded from one copy: what the registry holds may change in between.
            found = Path(download_artifacts(uri, dst_path=place))
            require_harmless(found)
            answer = mlflow.pyfunc.load_model(str(found)).predict(example)[OUTPUT]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"MLflow cannot load {uri}: {first_line(error)}") from error
    _compare(answer, folder, "MLflow")


def require_harmless(folder: Path) -> None:
    """Refuses a model for which MLflow would run anything but its own ONNX loader.

    `MLmodel` names the module that loads it and code to put on the path: whoever may write a version could run what he
    likes wherever it is tried.

    Raises:
        UserError: where it names another loader or code, or there is no such file.
    """
    file = folder / "MLmodel"
    try:
        flavor: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["flavors"]["python_function"]
        loader, code = flavor.get("loader_module"), next((key for key in CODE if flavor.get(key)), None)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"MLmodel of that version is damaged ({error}): `python -m flows run` registers it anew"
        ) from None
    wrong = f"loader_module {loader}" if loader != LOADER else f"{code} {flavor[code]}" if code else None
    if wrong:
        raise UserError(
            f"MLmodel of that version says {wrong}, which would run code here; versions of this program say "
            f"loader_module {LOADER} and no code. Find out who registered it, and delete it"
        )


def check_server(root: Path, folder: Path, service: str) -> None:
    """Starts `mlflow models serve` of a downloaded version and sends it the stored request.

    Raises:
        UserError: where the server does not start, or does not answer as the model did when it was registered, or
            MLflow would run code for it.
    """
    require_harmless(folder)
    server = Service.model(root, free_port(), folder, service)
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
