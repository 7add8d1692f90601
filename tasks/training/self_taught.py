"""A student that is its own teacher: by its deepest exit, or by the generation before it."""

from collections.abc import Callable

import numpy as np

from distillery.exits import add_exits, drop_exits, shortened, stages_with_exit
from distillery.features import default_layers
from distillery.models import Network
from distillery.objectives.registry import build
from distillery.saved import predict
from distillery.scores import scores
from distillery.signals import LiveTeacher
from distillery.step import STUDENT
from tasks.stage import Stage, Summary
from tasks.training.fitting import Splits, balance, labels_alone, save, steps_an_epoch, teach

BEFORE = "before"


def teach_exits(stage: Stage, splits: Splits, student: Network, *, keep: bool) -> Summary:
    """Be your own teacher (Zhang et al. 2019); writes `models/distilled`.

    The deepest exit, which is the student's own head, learns from the labels. Every other exit learns by
    `distill.objectives`, with the deepest for a teacher: the labels, its outputs, and its features where a hint is
    among the objectives. All losses are added.

    Raises:
        UserError: where the student has no two stages.
    """
    config = stage.params.distill
    stages = stages_with_exit(student)
    add_exits(student, stage.params.seed)
    deepest = default_layers(student)[-1]
    lessons = {
        f"exit_{number}": build(
            config.objectives,
            student,
            {STUDENT: student},
            weighting=config.weighting,
            class_weights=balance(splits, config.training),
            layers=((each,), (deepest,)),
        )
        for number, each in enumerate(stages, 1)
    }
    rows = np.arange(len(splits.train))
    loss = labels_alone(student, splits, config.training, config.weighting)
    outcome = teach(stage, student, splits, loss, config.training, rows=rows, lessons=lessons)
    validation = splits.validation
    reached: Summary = {
        f"score_exit_{number}": scores(
            predict(shortened(student, number), validation), validation.targets, student.schema
        )["score"]
        for number, _ in enumerate(stages, 1)
    }
    if not keep:
        drop_exits(student)
    return save(stage.output("models/distilled"), student, outcome, config.training, {"rows": len(rows), **reached})


def born_again(stage: Stage, splits: Splits, generations: int, born: Callable[[int], Network]) -> Summary:
    """Born-again networks (Furlanello et al. 2018, section 3); writes `models/distilled`.

    The first generation learns from the labels alone, as the baseline does. Each later one begins anew and learns by
    `distill.objectives` from the one before it, on every row; the last is the student. Every generation makes as many
    steps as the first.

    Args:
        stage: tells the parameters.
        splits: training and validation rows.
        generations: behind the first.
        born: a student with starting weights of a seed.
    """
    config, first = stage.params.distill, stage.params.seed
    everything = np.arange(len(splits.train))
    student = born(first)
    outcome = teach(
        stage,
        student,
        splits,
        labels_alone(student, splits, config.training, config.weighting),
        config.training,
        rows=splits.train.labelled,
        steps_per_epoch=steps_an_epoch(everything, config.training),
        part="generation_0",
    )
    reached: Summary = {"generation_0": outcome.score}
    for number in range(1, generations + 1):
        before, student = student, born(first + number)
        loss = build(
            config.objectives,
            student,
            {BEFORE: before},
            weighting=config.weighting,
            class_weights=balance(splits, config.training),
        )
        outcome = teach(
            stage,
            student,
            splits,
            loss,
            config.training,
            rows=everything,
            # Run in every step rather than stored: it is as small as the student, and sees what the student sees.
            teachers={BEFORE: LiveTeacher(before, loss.teacher_layers[BEFORE])},
            seed=first + number,
            part=f"generation_{number}",
        )
        reached[f"generation_{number}"] = outcome.score
    return save(
        stage.output("models/distilled"), student, outcome, config.training, {"rows": len(everything), **reached}
    )
