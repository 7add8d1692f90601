"""One epoch of distillation with stored targets against a plain epoch, a hand-written loop and a live teacher."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.digits28 import KD, PLAIN, SCHEMA, columns, main_job, teacher_model
from benchmarks.interleaved import Result, Work, ratio, seconds
from distillery import models
from distillery.columns import Columns
from distillery.objectives.configs import ObjectiveConfig
from distillery.objectives.registry import build
from distillery.saved import predict
from distillery.signals import LiveTeacher, Teacher
from distillery.soft_targets import StoredTeacher
from distillery.training import train


def measure(folder: Path) -> list[Result]:
    """Interleaved epochs of 3,500 rows with the models of the main job."""
    params = main_job()
    rows = columns(folder / "rows")
    few = columns(folder / "few", 2)
    network = models.build(teacher_model(), SCHEMA, seed=0)
    network.fit_normalisation(rows)
    stored = StoredTeacher(predict(network, rows).astype(np.float16))
    live = LiveTeacher(network)
    config = params.distill.training.model_copy(update={"epochs": 1})

    def epoch(objectives: tuple[ObjectiveConfig, ...], teacher: Teacher | None = None) -> Work:
        student = models.build(params.student.model, SCHEMA, seed=0)
        student.fit_normalisation(rows)
        teachers = {} if teacher is None else {"teacher": teacher}
        loss = build(objectives, student, dict.fromkeys(teachers))
        everything = np.arange(len(rows))
        return lambda: train(student, loss, rows, few, config, seed=0, rows=everything, teachers=teachers)

    times = seconds(
        {
            "kd": epoch(KD, stored),
            "plain": epoch(PLAIN),
            "by hand": by_hand(rows, config.batch_size),
            "live": epoch(KD, live),
        },
        rounds=9,
    )
    plain, told_plain = ratio(times, "kd", "plain")
    hand, told_hand = ratio(times, "kd", "by hand")
    teacher, told_teacher = ratio(times, "kd", "live")
    return [
        Result("KD epoch with stored targets / plain epoch, same loop", told_plain, "<= 1.05", plain <= 1.05),
        Result("KD epoch here / plain epoch written by hand, contiguous", told_hand, "<= 0.75", hand <= 0.75),
        Result("KD epoch with stored targets / with the teacher run live", told_teacher, "<= 0.22", teacher <= 0.22),
    ]


def by_hand(rows: Columns, batch_size: int) -> Work:
    """What one would write without this project: everything in memory, default layout, plain cross-entropy."""
    network = models.build(main_job().student.model, SCHEMA, seed=0)
    network.fit_normalisation(rows)
    (images,) = rows.gather(slice(None))
    targets = rows.gather_targets(slice(None))["label"]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def epoch() -> None:
        network.train()
        for batch in torch.split(torch.randperm(len(images)), batch_size):
            loss = functional.cross_entropy(network(images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return epoch
