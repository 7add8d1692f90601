"""What export and evaluation write down, and everybody after them reads: `export.json`, `evaluation.json`.

No heavy import stands here: the command line reads these files to draw its table.
"""

from typing import Annotated, Literal

from pydantic import Field

from distillery.config import Api, Config, TeacherModel
from distillery.schema import Input, Target
from tasks.document import Document
from tasks.params import Params

EXPORT = "models/onnx/export.json"
EVALUATION = "reports/evaluation.json"
SHIPPED = "models/student/shipped.json"

Role = Literal["teacher", "baseline", "distilled", "finetuned"]


class Candidate(Config):
    """A trained model that is exported and measured.

    Attributes:
        name: `teacher-<key>`, `baseline`, `distilled` or `finetuned`; also the name of its ONNX file.
        role: what it is for.
        folder: of the saved model, relative to the project.
        exported: whether it has an ONNX file; an api has none.
    """

    name: str
    role: Role
    folder: str
    exported: bool = True

    @property
    def is_student(self) -> bool:
        """Whether it has the architecture that is deployed."""
        return self.role != "teacher"


def candidates(params: Params) -> list[Candidate]:
    """Every model that is exported and measured: the teachers listened to, then the students."""
    teachers = [
        Candidate(
            name=f"teacher-{key}",
            role="teacher",
            folder=f"models/teachers/{key}",
            exported=not isinstance(params.teachers[key].model, Api),
        )
        for key in params.distill.teachers
    ]
    students: list[Role] = ["baseline", "distilled", "finetuned"]
    return teachers + [Candidate(name=role, role=role, folder=f"models/{role}") for role in students]


class Int8(Config):
    """What became of a quantised variant.

    Attributes:
        kept: whether the file stands beside the others.
        reason: why it was kept or dropped, as a sentence.
        file: in `models/onnx`; None where it was dropped.
        size: bytes of the file, also of a dropped one; None where it could not be made.
        score: on the validation split; None where it could not be made.
        largest_difference: from the float32 outputs on the validation split.
        equal_argmax: share of validation rows with the same class.
    """

    kept: bool
    reason: str
    file: str | None = None
    size: int | None = None
    score: float | None = None
    largest_difference: float | None = None
    equal_argmax: float | None = None


class ExportedModel(Config):
    """One ONNX file, checked against PyTorch on the test split.

    Attributes:
        file: in `models/onnx`.
        size: bytes.
        sha256: of the file.
        largest_difference: between the outputs of both, numbers in units of their deviation.
        equal_argmax: share of rows with the same class; None where the first target has none.
        score: of the ONNX file on the validation split, to compare int8 with.
        int8: None for a teacher, or where int8 is off.
        exits: the shorter files of a student that keeps its exits, shallow to deep.
    """

    file: str
    size: int
    sha256: str
    largest_difference: float
    equal_argmax: float | None
    score: float
    int8: Int8 | None = None
    exits: tuple["ExportedModel", ...] = ()


class ExportReport(Document):
    """`models/onnx/export.json`: model name -> its file, and how it was checked. Nothing in it depends on time."""

    rows: dict[str, int]
    models: dict[str, ExportedModel]


class Estimate(Config):
    """A figure with its bootstrap interval."""

    value: float
    low: float
    high: float


class ReliabilityBin(Config):
    """Rows whose confidence lies in (low, high]; means are None where there are none."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


class ClassScores(Config):
    """How one model tells the classes of a target apart.

    Attributes:
        rows: whose label is known.
        accuracy: of them.
        macro_f1: averaged over the classes that occur.
        nll: negative log-likelihood, nats.
        calibration_error: expected, equal-width bins.
        agreement: share of rows with the teacher's class; None for the teacher itself.
        kl: KL(teacher || model), nats; None for the teacher itself.
        recall: of each class, None where it has no rows.
        confusion: a row for each true class.
        reliability: the bins behind the calibration error.
    """

    kind: Literal["classes"] = "classes"
    rows: int
    accuracy: Estimate
    macro_f1: Estimate
    nll: float
    calibration_error: float
    agreement: Estimate | None
    kl: float | None
    recall: list[float | None]
    confusion: list[list[int]]
    reliability: list[ReliabilityBin]


class LabelScores(Config):
    """How one model finds the labels of a row.

    Attributes:
        rows: of which a label is known.
        micro_f1: over all labels of all rows.
        macro_f1: averaged over the labels that occur.
        exact: share of rows where every known label is right.
        nll: negative log-likelihood, nats a row.
        agreement: share of label decisions that are the teacher's; None for the teacher itself.
        f1: of each label, None where it neither occurs nor is said.
        support: rows that have it.
    """

    kind: Literal["labels"] = "labels"
    rows: int
    micro_f1: Estimate
    macro_f1: Estimate
    exact: float
    nll: float
    agreement: float | None
    f1: list[float | None]
    support: list[int]


class NumberScores(Config):
    """How close one model comes to a quantity.

    Attributes:
        rows: of which it is known.
        r2: share of the variance explained.
        rmse: root of the mean squared error, in the target's unit.
        mae: mean absolute error, likewise.
        to_teacher: root of the mean squared distance to the teacher's answers; None for the teacher itself.
        error_quantiles: 5, 25, 50, 75 and 95 % of answer minus truth.
        points: (truth, answer) of some rows, evenly over the split, to draw.
    """

    kind: Literal["number"] = "number"
    rows: int
    r2: Estimate
    rmse: Estimate
    mae: Estimate
    to_teacher: float | None
    error_quantiles: list[float]
    points: list[tuple[float, float]]


TargetScores = Annotated[ClassScores | LabelScores | NumberScores, Field(discriminator="kind")]


class Scores(Config):
    """How one model does on one split.

    Attributes:
        score: accuracy, micro-F1 or R2, averaged over the targets.
        targets: target -> its figures.
    """

    score: Estimate
    targets: dict[str, TargetScores]

    @property
    def only(self) -> TargetScores:
        """The figures of the first target."""
        return next(iter(self.targets.values()))

    def figure(self, metric: str) -> Estimate:
        """`score`, or a figure of the first target."""
        found = self.score if metric == "score" else getattr(self.only, metric)
        assert isinstance(found, Estimate)
        return found


class Deployed(Config):
    """An ONNX file, measured with ONNX Runtime on one thread.

    Attributes:
        file: relative to the project.
        size: bytes.
        test: scores on the test split.
        latency_ms: median time of one row.
        latency_p95_ms: 95th percentile of it.
        throughput: rows a second in batches of 256.
    """

    file: str
    size: int
    test: Scores
    latency_ms: float
    latency_p95_ms: float
    throughput: float


class Measured(Config):
    """One candidate.

    Attributes:
        role: teacher, baseline, distilled or finetuned.
        model: its parameters in `params.yaml`.
        parameters: trainable numbers; nobody knows those of an api.
        weights_sha256: of its weights file.
        best_epoch: the epoch that the validation split picked.
        validation: scores by PyTorch.
        test: scores by PyTorch.
        onnx: its exported file; None for a teacher that is asked over the network.
        int8: the quantised file, where one was kept.
        exits: the shorter files of a student that keeps its exits, shallow to deep.
    """

    role: Role
    model: TeacherModel
    parameters: int | None
    weights_sha256: str
    best_epoch: int | None
    validation: Scores
    test: Scores
    onnx: Deployed | None
    int8: Deployed | None
    exits: tuple[Deployed, ...] = ()


class Comparison(Config):
    """`model` minus `reference` on the same rows of one split, paired bootstrap.

    Attributes:
        metric: `score`, or a figure of a target.
        target: whose figure; None where it is that of the only target, or `score`.
    """

    split: Literal["validation", "test"]
    metric: str
    target: str | None = None
    model: str
    reference: str
    difference: Estimate
    p_value: float


class Ablation(Config):
    """A student that went without a part of the distillation, beside the distilled one on the same test rows.

    Attributes:
        target: the only one that it learned; None where it learned all.
        teacher: the only one that it heard; None where it heard all.
        value: its main figure of that target, or `score`.
        distilled: that of the distilled student.
        difference: distilled minus this one.
        p_value: of the difference.
    """

    target: str | None = None
    teacher: str | None = None
    value: Estimate
    distilled: Estimate
    difference: Estimate
    p_value: float


class Contribution(Config):
    """What one of several teachers gave to the distilled student, averaged over its training.

    Attributes:
        weight: how much the rows listened to it, of 1; None with one teacher.
        losses: objective -> its unweighted share of the loss.
    """

    weight: float
    losses: dict[str, float]


class SplitFacts(Config):
    """The rows that were measured on.

    Attributes:
        rows: all.
        labelled: those with a label.
        sha256: of keys, targets and inputs.
    """

    rows: int
    labelled: int
    sha256: str


class Shipped(Document):
    """`models/student/shipped.json`: which student is deployed, and why.

    Attributes:
        candidate: `baseline`, `distilled` or `finetuned`.
        because: as a sentence.
        primary: the metric that decided.
        validation: candidate -> that metric on the validation split.
        test: metric -> that of the shipped student, which decided nothing.
        files: name in the folder -> SHA-256.
    """

    candidate: Literal["baseline", "distilled", "finetuned"]
    because: str
    primary: str
    validation: dict[str, float]
    test: dict[str, Estimate]
    files: dict[str, str]


class Evaluation(Document):
    """`reports/evaluation.json`: everything that was measured.

    Attributes:
        targets: what is predicted, in the order of the models' outputs.
        inputs: what the student reads, in order.
        primary: the metric that decides: of the only target, or `score`.
        confidence: of every interval.
        resamples: of the bootstrap.
        teacher: the candidate that agreement and KL refer to; None without a teacher.
        splits: `validation` and `test`.
        models: candidate -> what was measured, teachers first.
        exports: candidate -> how its ONNX file was checked.
        comparisons: distilled - baseline, finetuned - distilled and finetuned - baseline; on both splits, by the usual
            metrics of each target and the primary.
        ablations: students without a part of the distillation.
        contributions: teacher -> what it gave, where there are several.
        shipped: the student that is deployed.
        runtime: versions of what measured (PyTorch, ONNX Runtime).
    """

    targets: dict[str, Target]
    inputs: dict[str, Input]
    primary: str
    confidence: float = Field(gt=0.0, lt=1.0)
    resamples: int
    teacher: str | None
    splits: dict[str, SplitFacts]
    models: dict[str, Measured]
    exports: dict[str, ExportedModel] = Field(default_factory=dict)
    comparisons: list[Comparison]
    ablations: list[Ablation] = Field(default_factory=list)
    contributions: dict[str, Contribution] = Field(default_factory=dict)
    shipped: Shipped
    runtime: dict[str, str]

    def comparison(self, model: str, reference: str, split: str, metric: str, target: str | None = None) -> Comparison:
        """One of the comparisons.

        Raises:
            KeyError: where these two were not compared.
        """
        for found in self.comparisons:
            wanted = (model, reference, split, metric, target)
            if (found.model, found.reference, found.split, found.metric, found.target) == wanted:
                return found
        raise KeyError(f"{model} - {reference} on {split}, {metric}")

    @property
    def student(self) -> Measured:
        """What was measured of the student that ships."""
        return self.models[self.shipped.candidate]


def title(name: str) -> str:
    """A candidate's name as people say it."""
    names = {"baseline": "Student alone", "distilled": "Distilled", "finetuned": "Fine-tuned"}
    return names.get(name) or f"Teacher {name.removeprefix('teacher-')}"
