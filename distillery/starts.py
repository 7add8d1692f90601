"""Where a network's weights come from before it is trained: an earlier run, a file, or layers of a teacher."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distillery.errors import UserError
from distillery.features import check_layers
from distillery.models import Network
from distillery.saved import load_model
from distillery.schema import Schema


def from_run(folder: Path, schema: Schema, where: str) -> Network:
    """A model that an earlier run left, with its weights and its normalisation.

    Args:
        folder: a copy of `models/student`, say.
        schema: of the present data.
        where: the parameter that names the folder, for messages.

    Raises:
        UserError: where there is no saved model, or it was trained on other inputs or for other targets.
    """
    if not (folder / "model.json").exists():
        raise UserError(f"{where}: {folder} holds no saved model; copy one there: cp -r models/student {folder}")
    network = load_model(folder)
    for name, spec in network.schema.inputs.items():
        ours = schema.inputs.get(name)
        fits = ours is not None and ours.kind == spec.kind and (ours.shape == spec.shape or spec.kind == "numeric")
        if not fits or ours is None or not set(spec.columns) <= set(ours.columns):
            raise UserError(
                f"{where}: the model in {folder} reads {name} ({spec.kind} {spec.shape} from {_listed(spec.columns)}), "
                f"the data have {_inputs(schema)}"
            )
    said = {name: (target.kind, target.names) for name, target in network.schema.targets.items()}
    wanted = {name: (target.kind, target.names) for name, target in schema.targets.items()}
    if list(said.items()) != list(wanted.items()):
        raise UserError(
            f"{where}: the model in {folder} predicts {_targets(network.schema)}, the data have {_targets(schema)}"
        )
    return network


def from_checkpoint(network: Network, file: Path) -> None:
    """Fills a network from a safetensors file: `weights.safetensors` of a saved model, or the body's own weights.

    A saved model brings its normalisation too, because its weights were trained behind it.

    Raises:
        UserError: where the file is missing, no safetensors file, or has other names or shapes.
    """
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise UserError(f"student.start.file: {file} is missing") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"student.start.file: {file} is no safetensors file: {error}") from None
    whole = network.state_dict()
    module: nn.Module = network if any(name.startswith("body.") for name in weights) else network.body
    _copy(module, weights, f"student.start.file: {file}", module.state_dict() if module is not network else whole)


def from_teacher(network: Network, teacher: Network, layers: Mapping[str, str]) -> None:
    """Copies layers of a teacher, weights and running statistics, into a network.

    Args:
        network: whose layers are filled.
        teacher: another network, or the same.
        layers: the network's module path: the teacher's.

    Raises:
        UserError: for a path that does not exist, or layers that differ in their tensors.
    """
    check_layers(network, list(layers))
    check_layers(teacher, list(layers.values()))
    for ours, theirs in layers.items():
        module = network.body.get_submodule(ours)
        weights = teacher.body.get_submodule(theirs).state_dict()
        _copy(module, weights, f"student.start.layers: {ours} from the teacher's {theirs}", module.state_dict())


def _copy(module: nn.Module, weights: Mapping[str, Tensor], where: str, wanted: Mapping[str, Tensor]) -> None:
    """Fills a module where everything fits.

    Raises:
        UserError: naming what is missing, too much, or of another shape.
    """
    missing, strange = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or strange:
        told = [f"lacks {_listed(missing)}"] if missing else []
        told += [f"has {_listed(strange)}, which the model lacks"] if strange else []
        raise UserError(f"{where}: does not fit: it {' and '.join(told)}")
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"{where}: {name} has shape {tuple(weights[name].shape)}, and the model's {tuple(tensor.shape)}"
            )
    module.load_state_dict(dict(weights))


def _inputs(schema: Schema) -> str:
    return ", ".join(f"{name} ({spec.kind} {spec.shape})" for name, spec in schema.inputs.items())


def _targets(schema: Schema) -> str:
    return "; ".join(f"{name} ({target.kind} {_listed(target.names)})" for name, target in schema.targets.items())


def _listed(names: tuple[str, ...] | list[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
