"""Diabetes (Efron et al. 2004): ten measurements of 442 patients and the course of a year, carried by scikit-learn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from distillery.sources import Options


def load(path: Path, columns: Sequence[str], options: "Options") -> "pa.Table":
    """Reads the whole set; nothing is downloaded.

    Returns:
        Columns `age`, `sex`, `bmi`, `bp`, `s1` to `s6` in their own units, and `progression`, 25 to 346.
    """
    import pyarrow as pa
    from sklearn.datasets import load_diabetes

    table = load_diabetes(scaled=False)
    measured = {name: pa.array(table.data[:, at]) for at, name in enumerate(table.feature_names)}
    return pa.table({**measured, "progression": pa.array(table.target)})
