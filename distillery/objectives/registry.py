"""Objectives by name, and how the sum of them is built."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from distillery.config import Mixing, Schedule, TaskWeighting
from distillery.features import default_layers, feature_shapes, pair
from distillery.models import Network
from distillery.objectives.adversarial import AdversarialObjective
from distillery.objectives.attention import AttentionObjective
from distillery.objectives.cc import CcObjective
from distillery.objectives.configs import ObjectiveConfig, needs_features
from distillery.objectives.crd import CrdObjective
from distillery.objectives.cross_entropy import CrossEntropyObjective
from distillery.objectives.dist import DistObjective
from distillery.objectives.dkd import DkdObjective
from distillery.objectives.fsp import FspObjective
from distillery.objectives.hints import HintsObjective
from distillery.objectives.irg import IrgObjective
from distillery.objectives.kd import KdObjective
from distillery.objectives.loss import Loss
from distillery.objectives.mse import MseObjective, MseTeacherObjective
from distillery.objectives.multilabel import MultilabelCrossEntropyObjective, MultilabelKdObjective
from distillery.objectives.objective import Objective, Setting
from distillery.objectives.pkt import PktObjective
from distillery.objectives.reviewkd import ReviewKdObjective
from distillery.objectives.rkd import RkdObjective
from distillery.objectives.sp import SpObjective
from distillery.objectives.vid import VidObjective
from distillery.objectives.weighted_sum import ALONE, WeightedSum

Pair = tuple[tuple[str, ...], tuple[str, ...]]
OBJECTIVES: dict[str, type[Objective]] = {
    "kd": KdObjective,
    "dkd": DkdObjective,
    "dist": DistObjective,
    "mse_teacher": MseTeacherObjective,
    "cross_entropy": CrossEntropyObjective,
    "mse": MseObjective,
    "multilabel_kd": MultilabelKdObjective,
    "multilabel_cross_entropy": MultilabelCrossEntropyObjective,
    "hints": HintsObjective,
    "attention": AttentionObjective,
    "vid": VidObjective,
    "reviewkd": ReviewKdObjective,
    "crd": CrdObjective,
    "rkd": RkdObjective,
    "sp": SpObjective,
    "cc": CcObjective,
    "pkt": PktObjective,
    "fsp": FspObjective,
    "irg": IrgObjective,
    "adversarial": AdversarialObjective,
}


def build(
    configs: Sequence[ObjectiveConfig] | Mapping[str, Sequence[ObjectiveConfig]],
    student: Network,
    teachers: Mapping[str, Network | None] | None = None,
    *,
    mixing: Mixing | None = None,
    weighting: TaskWeighting | None = None,
    class_weights: Mapping[str, Tensor] | None = None,
    layers: Pair | None = None,
) -> Loss:
    """Builds the loss that `distill.objectives` describes.

    Args:
        configs: each objective with its parameters; for each target where there are several.
        student: the network that is trained; tells the layers that features are taken from.
        teachers: by name, as networks where an objective compares layers.
        mixing: how much each teacher counts; by default equally.
        weighting: how much each target counts; by default equally.
        class_weights: target -> (C,) factors on the loss of labelled rows.
        layers: of student and teachers, compared where an objective names none; by default the last of each stage.

    Raises:
        UserError: for a layer that does not exist, or where a model has no stages and no layers are named.
    """
    by_target = configs if isinstance(configs, Mapping) else dict.fromkeys(student.schema.targets, configs)
    heads = {
        name: _weighted_sum(each, name, student, teachers or {}, mixing, (class_weights or {}).get(name), layers)
        for name, each in by_target.items()
    }
    return Loss(heads, student.schema, weighting)


def _weighted_sum(
    configs: Sequence[ObjectiveConfig],
    target: str,
    student: Network,
    teachers: Mapping[str, Network | None],
    mixing: Mixing | None,
    class_weights: Tensor | None,
    layers: Pair | None,
) -> WeightedSum:
    """The objectives of one target."""
    parts: dict[str, dict[str, Objective]] = {}
    schedules: dict[str, dict[str, Schedule]] = {}
    student_layers: dict[str, None] = {}
    teacher_layers: dict[str, dict[str, None]] = {key: {} for key in teachers}
    for config in configs:
        moving = {name: value for name, value in config if isinstance(value, Schedule) and name != "weight"}
        schedules[config.name] = moving
        kind = OBJECTIVES[config.name]
        for key in teachers if kind.needs_teacher else (ALONE,):
            setting = _setting(config, target, student, teachers.get(key), class_weights, layers)
            parts.setdefault(config.name, {})[key] = kind(config, setting)
            student_layers |= dict.fromkeys(setting.student)
            teacher_layers.get(key, {}).update(dict.fromkeys(setting.teacher))
    return WeightedSum(
        parts,
        {config.name: config.weight for config in configs},
        schedules,
        mixing,
        student_layers=tuple(student_layers),
        teacher_layers={key: tuple(layers) for key, layers in teacher_layers.items()},
    )


def _setting(
    config: ObjectiveConfig,
    target: str,
    student: Network,
    teacher: Network | None,
    class_weights: Tensor | None,
    default: Pair | None,
) -> Setting:
    """What an objective may want to know: the shapes of the layers that it compares."""
    classes = student.schema.targets[target].width
    if not needs_features(config):
        return Setting(classes, class_weights)
    assert teacher is not None
    layers = getattr(config, "layers", None)
    ours, theirs = (
        (layers.student, layers.teacher)
        if layers
        else default or pair(default_layers(student), default_layers(teacher))
    )
    return Setting(classes, class_weights, feature_shapes(student, ours), feature_shapes(teacher, theirs))
