"""Small real data for tests of the science: scikit-learn's digits as prepared columns."""

import numpy as np
from sklearn.datasets import load_digits

from distillery.columns import Columns
from distillery.schema import UNLABELLED, Input, Schema, Target

SCHEMA = Schema(
    inputs={"image": Input(kind="image", shape=(1, 8, 8), columns=("image",))},
    targets={"label": Target(kind="classes", names=tuple("0123456789"))},
)


def digits(start: int, stop: int, labelled: int | None = None) -> Columns:
    """Some of the 1,797 digits, in a fixed random order; rows beyond `labelled` hide their label."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[start:stop]
    images = (pixels[order].reshape(-1, 1, 8, 8) * 255 / 16).round().astype(np.uint8)
    target = labels[order].astype(np.int64)
    if labelled is not None:
        target[labelled:] = UNLABELLED
    return Columns(SCHEMA, order.astype(np.uint64), {"label": target}, {"image": images})
