"""The sections of `params.yaml` as frozen models."""

import re
import zoneinfo
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from distillery.config import (
    Augmentation,
    Config,
    Equal,
    Fixed,
    Mean,
    Mixing,
    ModelConfig,
    Random,
    SelfTaught,
    Start,
    TaskWeighting,
    TeacherModel,
    TrainingConfig,
)
from distillery.objectives.configs import OVER_BATCH, ObjectiveConfig
from distillery.schema import MAIN, Kind
from tasks.params.combinations import (
    check_inputs,
    check_models,
    check_primary,
    check_scheme,
    check_store,
    check_targets,
    check_teachers,
    check_trainings,
)

BUILT_IN_SOURCES = ("mnist5k", "digits", "diabetes", "multifeat")
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Columns(Config):
    """Which columns of the table are what."""

    inputs: tuple[str, ...] = Field(min_length=1)
    target: str | dict[str, Kind] = Field(description="one column of class names; or column: classes, labels or number")
    key: str | None = Field(None, description="names a row; without one a row is named by a hash of its inputs")
    group: str | None = Field(None, description="rows of one group share a split")
    split: str | None = Field(None, description="holds train, validation or test")

    @model_validator(mode="after")
    def _each_column_once(self) -> Self:
        if not self.targets:
            raise ValueError("target must name a column")
        named = [*self.inputs, *self.targets, *filter(None, (self.key, self.group, self.split))]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"a column has one role; named twice: {', '.join(twice)}")
        return self

    @property
    def targets(self) -> dict[str, Kind]:
        """Column -> what is predicted there."""
        return {self.target: "classes"} if isinstance(self.target, str) else self.target


class Split(Config):
    """Shares of the rows; a row's split follows from its id (or group), so it never moves."""

    train: Share = 0.7
    validation: Share = 0.1
    test: Share = 0.2

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train + validation + test must be 1, not {total:g}")
        return self


class Data(Config):
    """Where the rows come from."""

    source: Literal["mnist5k", "digits", "diabetes", "multifeat", "table", "images"]
    path: str = Field(description="the user's file or folder; for a built-in source its loader")
    columns: Columns
    split: Split
    labelled: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        description="how many training rows keep their label, spread over the classes"
    )

    @model_validator(mode="after")
    def _built_in_names_its_loader(self) -> Self:
        loader = f"distillery/sources/{self.source}.py"
        if self.source in BUILT_IN_SOURCES and self.path != loader:
            raise ValueError(f"the built-in source {self.source} needs path: {loader}")
        return self


class Ingest(Config):
    """How files are read."""

    duplicates: Literal["refuse", "drop"] = "refuse"
    image_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="height and width that the pictures of a folder are resized to"
    )
    image_mode: Literal["grey", "rgb"] = "rgb"


class Expectation(Config):
    """One more expectation, by Great Expectations' own name and arguments."""

    type: str
    arguments: dict[str, Any] = Field({}, description="as Great Expectations names them")


Objectives = Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1)]


def _objectives_tag(value: Any) -> str:
    return "by_target" if isinstance(value, dict) else "list"


ObjectivesOfTargets = Annotated[
    Annotated[Objectives, Tag("list")] | Annotated[dict[str, Objectives], Tag("by_target")],
    Discriminator(_objectives_tag),
]
LABELS_ALONE = {"cross_entropy", "mse", "multilabel_cross_entropy"}


class SoftTargetGate(Config):
    """What the soft targets of a teacher must show before a student listens to them."""

    min_agreement: float = Field(0.5, ge=0.0, le=1.0, description="share of labelled rows whose label comes first")
    max_entropy: float = Field(0.9, gt=0.0, le=1.0, description="mean entropy as a share of log(classes)")


class Validation(Config):
    """What the data must show before anything is trained on them."""

    classes: tuple[str, ...] | None = Field(None, description="allowed labels; else those seen in training rows")
    min_rows_per_class: int = Field(2, ge=1, description="labelled rows in the training split")
    expectations: tuple[Expectation, ...] = ()
    soft_targets: SoftTargetGate

    @model_validator(mode="before")
    @classmethod
    def _class_names_are_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("classes"), list):
            return {**value, "classes": [str(name) for name in value["classes"]]}
        return value


class TeacherConfig(Config):
    """One teacher."""

    inputs: tuple[str, ...] | None = Field(None, min_length=1, description="the columns it reads; by default all")
    model: TeacherModel
    labels: Literal["visible", "all"] = Field(
        "visible", description="all: also those that data.labelled hides from everybody else"
    )
    training: TrainingConfig = TrainingConfig()


class StudentConfig(Config):
    """The model that will be deployed."""

    inputs: tuple[str, ...] | None = Field(None, min_length=1, description="the columns it reads; by default all")
    model: ModelConfig
    start: Start = Field(Random(), description="random, checkpoint (file) or teacher (teacher, layers)")


class PeerConfig(Config):
    """A model that is trained beside the student."""

    inputs: tuple[str, ...] | None = Field(None, min_length=1, description="the columns it reads; by default all")
    model: ModelConfig


class SoftTargets(Config):
    """What is stored of what teachers say."""

    dtype: Literal["auto", "float16", "float32"] = Field(
        "auto", description="auto: float16, and float32 where a target is a number"
    )
    batch_size: int = Field(512, ge=1)
    features: dict[str, Literal["stages"] | Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        {}, description="teacher -> layers that are stored too; stages: the last of each"
    )
    views: int = Field(0, ge=0, description="changed images of every training row, which teacher and student both see")
    augment: Augmentation = Field(Augmentation(), description="what may happen in a view")

    @model_validator(mode="after")
    def _views_differ(self) -> Self:
        if self.views and self.augment == Augmentation():
            raise ValueError("views without augment are all the same: say what may happen, e.g. augment: {shift: 2}")
        if self.augment != Augmentation() and not self.views:
            raise ValueError("augment is what happens in views: say how many, e.g. views: 4, or leave it out")
        return self


class Distill(Config):
    """What the student listens to and how it is trained; the baseline shares the training."""

    scheme: Literal["offline", "online", "self"] = "offline"
    teachers: tuple[str, ...] = Field(description="keys of `teachers`; none under self, any under online")
    peers: dict[str, PeerConfig] = Field({}, description="online: trained beside the student, each hears all others")
    self: SelfTaught | None = Field(None, description="self: exits (keep) or born_again (generations)")
    mixing: Mixing = Mean()
    objectives: ObjectivesOfTargets = Field(description="with several targets a list for each")
    each_teacher: bool = Field(
        False, description="also train a student with each of several teachers alone, to tell what each is worth"
    )
    weighting: TaskWeighting = Field(
        Equal(), description="of several targets: equal, fixed (with weights), uncertainty"
    )
    training: TrainingConfig

    @property
    def all_objectives(self) -> tuple[ObjectiveConfig, ...]:
        """Those of every target."""
        if isinstance(self.objectives, dict):
            return tuple(objective for each in self.objectives.values() for objective in each)
        return self.objectives

    @model_validator(mode="after")
    def _hears_a_teacher(self) -> Self:
        for each in self.objectives.values() if isinstance(self.objectives, dict) else (self.objectives,):
            listed = [objective.name for objective in each]
            if len(set(listed)) < len(listed):
                raise ValueError(f"an objective stands once; got {', '.join(listed)}")
        names = [objective.name for objective in self.all_objectives]
        if set(names) <= LABELS_ALONE:
            raise ValueError("no objective listens to a teacher: add {name: kd}, or look at the baseline")
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError(f"a teacher stands once; got {', '.join(self.teachers)}")
        check_scheme(self)
        heard = (*self.teachers, *self.peers, *(["student"] if self.peers else []))
        if isinstance(self.mixing, Fixed) and set(self.mixing.weights) != set(heard):
            raise ValueError(f"mixing.weights must name just those who are heard: {', '.join(heard)}")
        compared = [name for name in names if name in OVER_BATCH]
        if compared and self.training.accumulate > 1:
            raise ValueError(
                f"{', '.join(compared)} compare all rows of a batch with each other, so training.accumulate must be 1"
            )
        if self.training.epochs == 0:
            raise ValueError("training.epochs must be at least 1")
        return self


class Finetune(Config):
    """A last training of the distilled student on the labelled rows alone."""

    training: TrainingConfig = TrainingConfig(epochs=5, learning_rate=1e-4)


class Export(Config):
    """ONNX files."""

    int8: bool = True
    int8_max_loss: float = Field(
        0.01, ge=0.0, lt=1.0, description="of accuracy, micro-F1 or R2 on the validation split; above it int8 goes"
    )


class Evaluate(Config):
    """How results are told."""

    primary: Literal["score", "accuracy", "macro_f1", "micro_f1", "r2"] | None = Field(
        None, description="decides which student ships; by default accuracy, micro-F1 or R2, averaged over the targets"
    )
    resamples: int = Field(2000, ge=100, description="of the bootstrap")
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    calibration_bins: int = Field(15, ge=2)


class Gates(Config):
    """What a challenger must show before it replaces the champion; every figure is taken on the present test set.

    A first champion is held against the student alone instead: it need not be better, its differences are taken as they
    are, without intervals, and it has to reach `min_retention`.
    """

    require: Literal["superior", "non_inferior"] = Field(
        "superior", description="superior: the primary metric is better beyond noise; non_inferior: no gate is failed"
    )
    max_loss: float = Field(
        0.01, ge=0.0, lt=1.0, description="of accuracy, F1 or R2: the interval of the paired difference stays above"
    )
    max_class_loss: float = Field(
        0.05, ge=0.0, le=1.0, description="of one class's recall; a class fails that loses more, and beyond noise"
    )
    max_calibration_rise: float = Field(0.02, ge=0.0, le=1.0, description="of the expected calibration error")
    max_agreement_loss: float = Field(0.02, ge=0.0, le=1.0, description="of the agreement with the teacher")
    max_latency_ratio: float = Field(1.25, gt=0.0, description="to the champion's, measured in turns on this machine")
    max_size_ratio: float = Field(1.5, gt=0.0, description="of the ONNX file to the champion's")
    min_retention: float = Field(
        0.9, ge=0.0, le=1.0, description="of a first champion: share of the teacher's primary metric"
    )
    serve_check: bool = Field(
        False, description="also start `mlflow models serve` and ask it; takes about 5 seconds, as --serve-check does"
    )


class DriftLimits(Config):
    """When new rows count as of another kind than the present ones."""

    level: float = Field(0.01, ge=0.001, lt=1.0, description="of significance, corrected for all tests of a batch")
    effect: float = Field(0.1, ge=0.0, le=1.0, description="at least this share of a distribution must have moved")


class Retraining(Config):
    """What `python -m flows retrain` does with data that arrived."""

    snapshot: int = Field(ge=0, description="partitions that teachers have learned from; raised by retrain")
    teacher: Literal["never", "on_drift", "always"] = Field(
        "on_drift", description="when new rows reach the teachers too, so that those are trained anew"
    )
    drift: DriftLimits = DriftLimits()
    commit: bool = Field(False, description="data, params.yaml and dvc.lock to Git")
    push: bool = Field(False, description="data and results to the default DVC remote")


class Registry(Config):
    """Names in the MLflow registry."""

    experiment: str = "distillation"
    teacher: str = "teacher"
    student: str = "student"

    @field_validator("teacher", "student")
    @classmethod
    def _fits_the_registry(cls, name: str) -> str:
        # MLflow refuses "/" and ":" only when everything is trained; quotes would break its filters.
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{name!r} is no name for a model in the registry: use letters, digits, '.', '_' and '-'")
        return name

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if self.teacher == self.student:
            raise ValueError("teacher and student need different names")
        return self


class Comparison(Config):
    """What `python -m flows compare` tries; no stage reads it, so it makes nothing stale.

    A method stands for a whole `params.yaml`, with which it is checked before anything runs.
    """

    methods: dict[str, dict[str, Any]] = Field(
        {}, description="name: keys of `distill` (without training), and `student` with keys of `student`"
    )
    students: dict[str, StudentConfig] = Field({}, description="name: a `student`; by default the project's own")
    seeds: int = Field(5, ge=1, description="trainings of each method and student; one has no interval")


class Schedule(Config):
    """When `python -m flows serve` runs a flow."""

    cron: str | None = Field(None, description="minute, hour, day of month, month, day of week")
    timezone: str = Field("UTC", description="in which the cron is meant, e.g. Europe/London")
    on_new_data: bool = Field(False, description="also when files arrive in data/incoming")

    @field_validator("cron")
    @classmethod
    def _has_five_fields(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\d*/,A-Za-z?#-]+( +[\d*/,A-Za-z?#-]+){4}", value):
            raise ValueError(f"{value!r} is no cron: five fields, e.g. '0 3 * * 1' for Mondays at three")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in zoneinfo.available_timezones():
            raise ValueError(f"{value!r} is no time zone, e.g. Europe/London")
        return value

    @model_validator(mode="after")
    def _comes_due(self) -> Self:
        if self.cron is None and not self.on_new_data:
            raise ValueError("give a cron, or on_new_data: true, or leave it out")
        return self


class Params(Config):
    """The whole of `params.yaml`. Sections that stages read must stand, because DVC tracks sections by name."""

    seed: int = Field(ge=0, lt=2**32)
    data: Data
    ingest: Ingest
    validation: Validation
    teachers: dict[str, TeacherConfig]
    soft_targets: SoftTargets
    student: StudentConfig
    distill: Distill
    finetune: Finetune
    export: Export
    evaluate: Evaluate
    gates: Gates = Gates()
    registry: Registry
    retraining: Retraining
    comparison: Comparison = Comparison()
    schedules: dict[Literal["retraining", "distillation", "promotion", "comparison"], Schedule] = Field(
        {}, description="what `python -m flows serve` runs"
    )

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        for check in (
            check_targets,
            check_trainings,
            check_primary,
            check_inputs,
            check_teachers,
            check_models,
            check_store,
        ):
            check(self)
        return self

    @property
    def primary(self) -> str:
        """The metric that decides: of the only target, or the mean of the main ones."""
        kinds = tuple(self.data.columns.targets.values())
        return self.evaluate.primary or ("score" if len(kinds) > 1 else MAIN[kinds[0]])
