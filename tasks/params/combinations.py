"""Parts of `params.yaml` that do not go together, told with the reason before anything is imported or trained."""

import re
from typing import TYPE_CHECKING

from distillery.config import (
    Api,
    Augmentation,
    Confidence,
    CustomModel,
    Exits,
    Fixed,
    FixedTasks,
    FromCheckpoint,
    FromTeacher,
    SavedModel,
)
from distillery.objectives.configs import FITS, needs_features
from distillery.schema import METRICS

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.params.sections import Distill

VOICES = re.compile(r"student|exit_\d+")


def check_scheme(distill: "Distill") -> None:
    """What a scheme needs, and what it does not read.

    Raises:
        ValueError: with the key, the reason and the mend.
    """
    if distill.scheme == "offline" and not distill.teachers:
        raise ValueError("teachers: scheme offline listens to at least one; without any take online or self")
    if distill.scheme == "online" and not distill.peers:
        raise ValueError("peers: scheme online trains at least one model beside the student: {name: {model: ...}}")
    if distill.scheme != "online" and distill.peers:
        raise ValueError(f"peers are trained under scheme online only, not {distill.scheme}")
    if distill.scheme == "self" and distill.self is None:
        raise ValueError("self: scheme self needs {name: exits} or {name: born_again}")
    if distill.scheme != "self" and distill.self is not None:
        raise ValueError(f"self is read under scheme self only, not {distill.scheme}")
    if distill.scheme == "self" and distill.teachers:
        raise ValueError("teachers: under scheme self the student has no teacher but itself: put [] here")
    if distill.scheme == "self" and isinstance(distill.mixing, Fixed):
        raise ValueError("mixing is of several who are heard, and under scheme self there is one")
    for name in distill.peers:
        if not re.fullmatch(r"[a-z0-9_-]+", name):
            raise ValueError(f"peers.{name}: a peer's name may hold a-z, 0-9, _ and - only")
        if VOICES.fullmatch(name) or name in distill.teachers:
            raise ValueError(f"peers.{name}: another one who is heard has that name; take another")
    named = [each.name for each in distill.all_objectives if getattr(each, "layers", None) is not None]
    if isinstance(distill.self, Exits) and named:
        raise ValueError(
            f"objectives: {', '.join(named)}: layers cannot be named under exits, "
            "where each exit's stage is compared with the deepest"
        )
    if isinstance(distill.self, Exits) and any(each.name == "fsp" for each in distill.all_objectives):
        raise ValueError("objectives: fsp compares flows between two layers, and each exit has one stage: take hints")


def check_models(params: "Params") -> None:
    """What a model can and cannot be asked for.

    Raises:
        ValueError: with the key, the reason and the mend.
    """
    comparing = [each.name for each in params.distill.all_objectives if needs_features(each)]
    for key, teacher in params.teachers.items():
        if VOICES.fullmatch(key):
            raise ValueError(f"teachers.{key}: what the student itself says has that name; take another")
        if isinstance(teacher.model, Api):
            if "training" in teacher.model_fields_set and teacher.training.epochs:
                raise ValueError(f"teachers.{key}.training: an api is asked, not trained; leave training out")
            if key in params.distill.teachers and comparing:
                raise ValueError(
                    f"distill.objectives: {', '.join(comparing)} compare layers, and the teacher {key} is an api, "
                    "which tells outputs only: take kd, dkd or dist"
                )
        if isinstance(teacher.model, SavedModel) and teacher.inputs is not None:
            raise ValueError(f"teachers.{key}.inputs: a saved model reads what it was trained on; leave inputs out")
    start, model = params.student.start, params.student.model
    if isinstance(start, FromCheckpoint) and isinstance(model, CustomModel) and model.weights is not None:
        raise ValueError("student: start from a checkpoint or from model.weights, not from both")
    if isinstance(start, FromTeacher):
        if start.teacher not in params.teachers:
            known = ", ".join(params.teachers) or "none"
            raise ValueError(f"student.start.teacher: {start.teacher!r} is not among teachers: {known}")
        if isinstance(params.teachers[start.teacher].model, Api):
            raise ValueError(f"student.start.teacher: {start.teacher} is an api, whose layers nobody can copy")
    if isinstance(params.distill.self, Exits) and not isinstance(model, CustomModel) and model.stages < 2:
        raise ValueError(
            f"distill.self: exits stand behind every stage but the last, and this {model.name} has "
            f"{model.stages or 'no'} stage{'s' if model.stages != 1 else ''}: give the student a deeper model"
        )


def check_store(params: "Params") -> None:
    """What can be stored of teachers, and what a student then sees.

    Raises:
        ValueError: with the key, the reason and the mend.
    """
    store = params.soft_targets
    numbers = [name for name, kind in params.data.columns.targets.items() if kind == "number"]
    if store.dtype == "float16" and numbers:
        raise ValueError(
            f"soft_targets.dtype: float16 ends at 65,504, and {', '.join(numbers)} is a number in its own unit: "
            "take auto or float32"
        )
    for key in store.features:
        if key not in params.teachers:
            raise ValueError(f"soft_targets.features: {key!r} is not among teachers: {', '.join(params.teachers)}")
        if isinstance(params.teachers[key].model, Api):
            raise ValueError(f"soft_targets.features.{key}: {key} is an api, which tells outputs only: leave it out")
    if store.views and params.distill.training.augment != Augmentation():
        raise ValueError(
            "distill.training.augment changes what soft_targets.views shows, and the student would see something else "
            "than the teacher did: leave out one of them"
        )


def check_targets(params: "Params") -> None:
    """What each target can be taught by, and how targets are weighed.

    Raises:
        ValueError: with the key, the reason and the mend.
    """
    kinds = params.data.columns.targets
    given = params.distill.objectives
    if len(kinds) > 1 and not isinstance(given, dict):
        raise ValueError(f"distill.objectives: with several targets name a list for each of {', '.join(kinds)}")
    by_target = given if isinstance(given, dict) else {next(iter(kinds)): given}
    if set(by_target) != set(kinds):
        raise ValueError(f"distill.objectives must have a list for each target and no other: {', '.join(kinds)}")
    for target, objectives in by_target.items():
        for objective in objectives:
            fits = FITS[objective.name]
            if kinds[target] not in fits:
                raise ValueError(
                    f"distill.objectives: {objective.name} is about {fits[0]}, and {target} is {kinds[target]}: "
                    f"take {', '.join(name for name, of in FITS.items() if of == (kinds[target],))} or mse_teacher"
                )
    if params.validation.classes is not None and tuple(kinds.values()) != ("classes",):
        raise ValueError("validation.classes is for one target with classes: take it out")
    weighting = params.distill.weighting
    if isinstance(weighting, FixedTasks) and set(weighting.weights) != set(kinds):
        raise ValueError(f"distill.weighting.weights must name just the targets: {', '.join(kinds)}")
    if isinstance(params.distill.mixing, Confidence) and set(kinds.values()) != {"classes"}:
        raise ValueError("distill.mixing: confidence compares what teachers say of classes: take mean or fixed")


def check_trainings(params: "Params") -> None:
    """How a training can be watched and balanced, given what is predicted.

    Raises:
        ValueError: with the key, the reason and the mend.
    """
    kinds = tuple(params.data.columns.targets.values())
    trainings = {f"teachers.{key}": each.training for key, each in params.teachers.items()}
    for where, training in {
        **trainings,
        "distill": params.distill.training,
        "finetune": params.finetune.training,
    }.items():
        if training.monitor in ("accuracy", "macro_f1") and kinds != ("classes",):
            raise ValueError(f"{where}.training.monitor: {training.monitor} is of one target with classes: take score")
        if training.balance == "sampling" and kinds != ("classes",):
            raise ValueError(f"{where}.training.balance: sampling is for one target with classes")


def check_primary(params: "Params") -> None:
    """What can decide which student ships.

    Raises:
        ValueError: with the key, the reason and the mend.
    """
    kinds, primary = tuple(params.data.columns.targets.values()), params.evaluate.primary
    allowed = ("score",) if len(kinds) > 1 else METRICS[kinds[0]]
    if primary is not None and primary not in allowed:
        raise ValueError(f"evaluate.primary: {primary} is not measured here; take {' or '.join(allowed)}")


def check_inputs(params: "Params") -> None:
    """That whoever reads some columns finds them.

    Raises:
        ValueError: with the key, the reason and the mend.
    """
    readers = {f"teachers.{key}": each.inputs for key, each in params.teachers.items()}
    readers |= {f"distill.peers.{key}": each.inputs for key, each in params.distill.peers.items()}
    for where, inputs in {**readers, "student": params.student.inputs}.items():
        for name in inputs or ():
            if name not in params.data.columns.inputs:
                raise ValueError(
                    f"{where}.inputs: {name!r} is not among data.columns.inputs: "
                    f"{', '.join(params.data.columns.inputs)}"
                )


def check_teachers(params: "Params") -> None:
    """That teachers have sound names, and those listened to exist.

    Raises:
        ValueError: with the key, the reason and the mend.
    """
    for key in params.teachers:
        if not re.fullmatch(r"[a-z0-9_-]+", key):
            raise ValueError(f"teachers.{key}: a teacher's key may hold a-z, 0-9, _ and - only")
    for key in params.distill.teachers:
        if key not in params.teachers:
            raise ValueError(f"distill.teachers: {key!r} is not among teachers: {', '.join(params.teachers)}")
