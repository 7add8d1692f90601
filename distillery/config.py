"""What a user may say about models, objectives and training, checked before anything heavy is imported.

Every class is frozen and rejects unknown keys. `tasks.params` assembles them into `params.yaml`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


class Config(BaseModel):
    """A frozen section of parameters; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mlp(Config):
    """Fully connected network over the flattened, concatenated inputs."""

    name: Literal["mlp"]
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (32,)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @property
    def stages(self) -> int:
        """After how many stages it could end."""
        return len(self.hidden)


class Cnn(Config):
    """Small convolutional network: one 3x3 convolution and a halving of the image per entry of `channels`."""

    name: Literal["cnn"]
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((16, 32), min_length=1)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @property
    def stages(self) -> int:
        """After how many stages it could end."""
        return len(self.channels)


class Resnet(Config):
    """CIFAR-style residual network (He et al. 2016, section 4.2): depth 6n + 2, three stages from `width` channels."""

    name: Literal["resnet"]
    depth: int = Field(8, ge=8)
    width: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _depth_fits(self) -> Self:
        if (self.depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...), not {self.depth}")
        return self

    @property
    def stages(self) -> int:
        """After how many stages it could end."""
        return 3


def _watched(path: str) -> str:
    """What a run reads beside the data lies where DVC sees it change."""
    if not path.startswith("custom/") or ".." in path.split("/"):
        raise ValueError("must lie under custom/, the folder DVC watches")
    return path


Watched = Annotated[str, AfterValidator(_watched)]


class CustomModel(Config):
    """The user's own: a function `package.module:function(inputs, outputs, **arguments)` that returns a module."""

    name: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    arguments: dict[str, Any] = Field({}, description="passed on to the function")
    weights: Watched | None = Field(None, description="a safetensors file under custom/, loaded before training")
    normalise: bool = Field(True, description="false: images arrive in 0..1, numbers as they are")


class SavedModel(Config):
    """A model that an earlier run of this program left, with its weights: a student becomes a teacher."""

    name: Literal["saved"]
    folder: Watched = Field(description="a copy of models/student or models/distilled, under custom/")


class Api(Config):
    """A teacher that is only asked: `package.module:function(inputs)`, see `distillery.api`."""

    name: Literal["api"]
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def _model_tag(value: Any) -> str:
    """Tells a built-in from the user's own by the colon in the name."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "custom" if isinstance(name, str) and ":" in name else str(name)


ModelConfig = Annotated[
    Annotated[Mlp, Tag("mlp")]
    | Annotated[Cnn, Tag("cnn")]
    | Annotated[Resnet, Tag("resnet")]
    | Annotated[CustomModel, Tag("custom")],
    Discriminator(_model_tag),
]
TeacherModel = Annotated[
    Annotated[Mlp, Tag("mlp")]
    | Annotated[Cnn, Tag("cnn")]
    | Annotated[Resnet, Tag("resnet")]
    | Annotated[CustomModel, Tag("custom")]
    | Annotated[SavedModel, Tag("saved")]
    | Annotated[Api, Tag("api")],
    Discriminator(_model_tag),
]


class Random(Config):
    """Random weights, drawn by the seed."""

    name: Literal["random"] = "random"


class FromCheckpoint(Config):
    """Weights of a file."""

    name: Literal["checkpoint"]
    file: Watched = Field(description="a safetensors file under custom/")


class FromTeacher(Config):
    """Some layers of a teacher, the others at random."""

    name: Literal["teacher"]
    teacher: str
    layers: dict[str, str] = Field(min_length=1, description="the student's module path: the teacher's")


Start = Annotated[Random | FromCheckpoint | FromTeacher, Field(discriminator="name")]


class Exits(Config):
    """The deepest exit of the student teaches shallower ones (Be your own teacher, Zhang et al. 2019)."""

    name: Literal["exits"]
    keep: bool = Field(False, description="exits stay in the saved model, each with an ONNX file of its own")


class BornAgain(Config):
    """Each generation of the student learns from the one before (Furlanello et al. 2018)."""

    name: Literal["born_again"]
    generations: int = Field(1, ge=1, description="behind the first, which learns from the labels alone")


SelfTaught = Annotated[Exits | BornAgain, Field(discriminator="name")]


class Augmentation(Config):
    """Random changes of image inputs, drawn for each row, made on the whole batch at once."""

    shift: int = Field(0, ge=0, description="pixels, in each direction, filled with zeros")
    flip: bool = Field(False, description="mirror left and right with probability 1/2")
    crop: float = Field(1.0, gt=0.0, le=1.0, description="smallest share of height and width kept, then resized back")


class TrainingConfig(Config):
    """How parameters are moved; the same for teachers, baseline, students and fine-tuning."""

    epochs: int = Field(10, ge=0, description="0 keeps the starting weights")
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="sgd only")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(0.0, ge=0.0, lt=1.0, description="share of all steps with a linearly rising learning rate")
    balance: Literal["none", "class_weights", "sampling"] = "none"
    monitor: Literal["score", "accuracy", "macro_f1", "nll"] = Field(
        "score", description="picks the epoch; score: accuracy, micro-F1 or R2, averaged over the targets"
    )
    early_stopping: int | None = Field(None, ge=1, description="epochs without a better validation score")
    augment: Augmentation = Augmentation()
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    clip_gradient: float | None = Field(None, gt=0.0, description="largest norm of the gradient")
    accumulate: int = Field(1, ge=1, description="micro-batches a step; the loss is the same as in one batch")
    checkpoint_seconds: float = Field(10.0, ge=0.0, description="time between checkpoints; 0: every step")


class Schedule(Config):
    """A number that moves during training: linearly from `start` to `end`, which it reaches after a share of it."""

    start: float = Field(ge=0.0)
    end: float = Field(ge=0.0)
    over: float = Field(1.0, gt=0.0, le=1.0, description="share of the training; small: a warm-up")

    def at(self, position: float) -> float:
        """The number at a position from 0 to 1."""
        return self.start + (self.end - self.start) * min(1.0, position / self.over)


def _schedule_tag(value: Any) -> str:
    return "schedule" if isinstance(value, dict | Schedule) else "number"


Scheduled = Annotated[
    Annotated[float, Field(gt=0.0), Tag("number")] | Annotated[Schedule, Tag("schedule")],
    Discriminator(_schedule_tag),
]


def at(value: float | Schedule, position: float = 0.0) -> float:
    """A number, or where a schedule is at a position of the training from 0 to 1."""
    return value.at(position) if isinstance(value, Schedule) else value


class Mean(Config):
    """Every teacher counts the same."""

    name: Literal["mean"] = "mean"


class Fixed(Config):
    """Every teacher has its weight; they are scaled to sum to 1."""

    name: Literal["fixed"]
    weights: dict[str, Annotated[float, Field(gt=0.0)]]


class Confidence(Config):
    """Each row listens most to the teacher that is least surprised by its label (CA-MKD, Zhang et al. 2022)."""

    name: Literal["confidence"]


class Equal(Config):
    """The losses of all targets are added."""

    name: Literal["equal"] = "equal"


class FixedTasks(Config):
    """The loss of each target has its weight."""

    name: Literal["fixed"]
    weights: dict[str, Annotated[float, Field(gt=0.0)]]


class Uncertainty(Config):
    """Each target's weight follows from a noise that is learned (Kendall, Gal, Cipolla 2018)."""

    name: Literal["uncertainty"]


TaskWeighting = Annotated[Equal | FixedTasks | Uncertainty, Field(discriminator="name")]
Mixing = Annotated[Mean | Fixed | Confidence, Field(discriminator="name")]
