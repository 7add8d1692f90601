"""What a teacher has said of a row need not be asked again: earlier stores, and where they speak of which row.

What a teacher says is a function of what it is shown. That is a row's inputs, and of a view (`distillery.views`) also
the row's key, the number of the view and what may happen in it; a row whose inputs change under its key is a new one.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distillery.api import ApiNetwork
from distillery.errors import UserError
from distillery.models import Network
from distillery.soft_targets import DType, SoftTargets
from distillery.views import Views, mixed

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
SHOWING = ("augment.py", "columns.py", "views.py")
SPEAKING = ("exits.py", "features.py", "models", "saved.py")
BLOCK_BYTES = 1 << 24


def earlier(folder: Path) -> SoftTargets | None:
    """A store that `keep` has kept; None where there is none, or a damaged one: then all is asked anew."""
    try:
        return SoftTargets.open(folder)
    except UserError:
        return None


def keep(store: Path, folder: Path) -> None:
    """Keeps a finished store for the next time, in place of all that the folder around it holds.

    Files are linked, and copied only where the disk has no links.
    """
    fresh = folder.parent.with_name(f"{folder.parent.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(store, fresh / folder.name, copy_function=_linked)
    shutil.rmtree(folder.parent, ignore_errors=True)
    fresh.replace(folder.parent)


def code(network: Network, custom: Path) -> str:
    """SHA-256 of the code between a row and what a teacher says of it: the digest of its weights knows nothing of it.

    Args:
        network: the teacher; the digest of an api tells of its code already.
        custom: the folder of the user's own code.
    """
    package = Path(__file__).parent
    places = [package / name for name in SHOWING]
    if not isinstance(network, ApiNetwork):
        places += [custom, *(package / name for name in SPEAKING)]
    total = hashlib.sha256()
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def identities(keys: Hashes, contents: Hashes, views: Views | None, parts: Mapping[str, int]) -> Hashes:
    """(R,) a hash of what a teacher is shown, in the order of a store.

    Args:
        keys: (N,) of the rows.
        contents: (N,) of their inputs.
        views: of the training rows.
        parts: split -> its rows, each view counted; training rows come first.
    """
    if views is None:
        return contents
    training = parts["train"] // views.count
    changes = hashlib.blake2b(views.augment.model_dump_json().encode(), digest_size=8).digest()
    start = mixed(mixed(contents[:training] + np.frombuffer(changes, "<u8")) + keys[:training])
    return np.concatenate([*(mixed(start + np.uint64(view)) for view in range(views.count)), contents[training:]])


def find(store: SoftTargets | None, teacher: str, dtype: DType, layers: Sequence[str], wanted: Hashes) -> Rows:
    """Where a store speaks of rows.

    Args:
        store: of another teacher or dtype, or without one of the layers, it says nothing.
        teacher: digest.
        dtype: of what is stored.
        layers: whose features are wanted.
        wanted: (R,) from `identities`.

    Returns:
        (R,) numbers of rows in the store; -1: it says nothing.
    """
    if (
        store is None
        or (store.manifest.teacher, store.manifest.dtype) != (teacher, dtype)
        or not set(layers) <= set(store.features)
    ):
        return np.full(len(wanted), -1)
    known = identities(store.keys, store.contents, store.manifest.views, store.manifest.parts)
    at: Rows = pc.index_in(pa.array(wanted), value_set=pa.array(known)).fill_null(-1).to_numpy().astype(np.int64)
    return at


def copy(source: npt.NDArray[np.floating], found: Rows, target: npt.NDArray[np.floating]) -> None:
    """Copies what was found in an array (S, ...) to its place in one (R, ...), with flat memory."""
    rows = np.flatnonzero(found >= 0)
    size = max(1, BLOCK_BYTES // source[:1].nbytes)
    for at in range(0, len(rows), size):
        block = rows[at : at + size]
        target[block] = source[found[block]]


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
