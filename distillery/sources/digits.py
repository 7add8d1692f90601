"""Digits: 1,797 handwritten digits, 8x8 grey, carried by scikit-learn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from distillery.sources import Options


def load(path: Path, columns: Sequence[str], options: "Options") -> "pa.Table":
    """Reads the whole set; nothing is downloaded.

    The set counts dark pixels, 0 to 16 in each cell; here they are spread over 0 to 255 (times 255/16, rounded),
    so that they read like any other grey picture.

    Returns:
        Columns `image`, (1, 8, 8) uint8, and `label`, 0 to 9; made from them, for other kinds of target, `ink` (mean
        darkness in percent) and `traits` (`even`, `large` for 5 and more, `loop` for 0, 6, 8 and 9).
    """
    import numpy as np
    import pyarrow as pa
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    traits = {"even": digits.target % 2 == 0, "large": digits.target >= 5, "loop": np.isin(digits.target, [0, 6, 8, 9])}
    return pa.table(
        {
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
            "label": pa.array(digits.target),
            "ink": pa.array(digits.images.mean((1, 2)) * (100 / 16)),
            "traits": pa.array([[name for name, holds in traits.items() if holds[row]] for row in range(len(images))]),
        }
    )
