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
        Columns `image`, (1, 8, 8) uint8, and `label`, 0 to 9.
    """
    import numpy as np
    import pyarrow as pa
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "label": pa.array(digits.target)})
