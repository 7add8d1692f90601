"""Trains the students that tell what a part of the distillation is worth: each target alone, each teacher alone."""

from distillery.config import Equal, Mean
from distillery.signals import OneTarget
from tasks.distill import listen, new_student
from tasks.stage import Stage, Summary
from tasks.training.fitting import Splits


def run(stage: Stage) -> Summary:
    """Writes `models/ablations`, a folder for each such student; none where there is nothing to tell.

    With several targets `target-<name>` learns one of them and is the distilled student in all else, so that the
    evaluation can tell whether sharing hurt. With several teachers and `distill.each_teacher` the student
    `teacher-<key>` hears one of them.
    """
    splits, config = Splits.open(stage, views=True), stage.params.distill
    folder = stage.output("models/ablations")
    folder.mkdir()
    schema = splits.train.schema
    trained: Summary = {}
    if len(schema.targets) > 1 and config.scheme == "offline":
        assert isinstance(config.objectives, dict)
        for target, objectives in config.objectives.items():
            name = f"target-{target}"
            alone = Splits(*(rows.only(target) for rows in (splits.train, splits.validation, splits.shown)))
            facts = listen(
                stage,
                alone,
                new_student(stage, alone, stage.params.seed),
                config.model_copy(update={"objectives": {target: objectives}, "weighting": Equal()}),
                folder / name,
                heard=lambda teacher, target=target: OneTarget(teacher, schema, target),  # type: ignore[misc]
                part=name,
            )
            trained[name] = facts["best_epoch"]
    if config.each_teacher and config.scheme == "offline" and len(config.teachers) > 1:
        for key in config.teachers:
            name = f"teacher-{key}"
            facts = listen(
                stage,
                splits,
                new_student(stage, splits, stage.params.seed),
                config.model_copy(update={"teachers": (key,), "mixing": Mean()}),
                folder / name,
                part=name,
            )
            trained[name] = facts["best_epoch"]
    return trained
