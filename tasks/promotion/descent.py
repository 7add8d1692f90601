"""What a registered version keeps of where it comes from: a folder `lineage` beside the model's own files.

`dvc.lock` and `params.yaml` as they were, `partitions.yaml` (the `.dvc` files of what had arrived), `data.json`,
`train-keys.npy` and `validation-keys.npy` (uint64, sorted: the rows it was trained and chosen on), `train-contents.npy`
and `validation-contents.npy` (likewise, hashes of their inputs; versions of earlier releases have none),
`example_output.npy` (1, O), what it answers to the input example, and of a student `alone.onnx`, the same network
trained without a teacher.
"""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from distillery.config import Config
from distillery.errors import UserError
from tasks.params import FILE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from distillery.columns import Columns

FOLDER = "lineage"
LOCK = "dvc.lock"
PARTITIONS = "partitions.yaml"
ALONE = "alone.onnx"
SEEN = ("train", "validation")
OF_STUDENTS, OF_TEACHERS = Path("data") / "prepared", Path("data") / "snapshot"
TEST = "data/prepared/test"


class Rows(Config):
    """The rows of a split, and how many of them have a label."""

    rows: int
    labelled: int


class Data(Config):
    """`data.json`.

    Attributes:
        splits: name -> its rows.
        test_sha256: of the test set when the model was registered.
    """

    splits: dict[str, Rows]
    test_sha256: str


def identity(root: Path, seen: Path) -> str:
    """SHA-256 of the rows that a model made now was trained and chosen on.

    Args:
        root: the project's folder.
        seen: `OF_STUDENTS` or `OF_TEACHERS`.

    Raises:
        FileNotFoundError: where the data are not prepared.
    """
    total = hashlib.sha256()
    for split in SEEN:
        total.update(_sorted(root / seen, split, "keys").tobytes())
    return total.hexdigest()


def write(root: Path, seen: Path, folder: Path, alone: Path | None) -> None:
    """Fills a new folder, all but `example_output.npy`.

    Args:
        root: the project's folder, with a finished pipeline.
        seen: `OF_STUDENTS` or `OF_TEACHERS`.
        folder: gets the files.
        alone: the ONNX file of the student alone.

    Raises:
        FileNotFoundError: where a file of the pipeline is missing.
    """
    import numpy as np

    from distillery import partitions
    from distillery.columns import Columns
    from tasks.promotion.scoring import digest

    folder.mkdir()
    for name in (LOCK, FILE):
        if (root / name).exists():
            shutil.copyfile(root / name, folder / name)
    arrived = {file.name: file.read_text(encoding="utf-8") for file in (root / partitions.FOLDER).glob("*.dvc")}
    (folder / PARTITIONS).write_text(yaml.safe_dump(arrived), encoding="utf-8")
    for split in SEEN:
        for kind in ("keys", "contents"):
            np.save(folder / f"{split}-{kind}.npy", _sorted(root / seen, split, kind))
    opened = {split: Columns.open(root / seen / split) for split in SEEN} | {"test": Columns.open(root / TEST)}
    data = Data(
        splits={name: Rows(rows=len(each), labelled=len(each.labelled)) for name, each in opened.items()},
        test_sha256=digest(opened["test"]),
    )
    (folder / "data.json").write_text(data.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if alone is not None:
        shutil.copyfile(alone, folder / ALONE)


def data_of(folder: Path) -> Data | None:
    """`data.json` of a version's lineage; None for one registered before there was any."""
    file = folder / "data.json"
    return Data.model_validate_json(file.read_bytes()) if file.exists() else None


def seen(folder: Path, rows: "Columns") -> int | None:
    """How many of some rows a model was trained or chosen on, by key or by content; None where nobody knows.

    Keys alone would not do: another key column names every row anew.
    """
    import numpy as np

    known: dict[str, npt.NDArray[np.uint64]] = {}
    for kind in ("keys", "contents"):
        files = [folder / f"{split}-{kind}.npy" for split in SEEN]
        if all(file.exists() for file in files):
            known[kind] = np.concatenate([np.load(file) for file in files])
    if "keys" not in known:
        return None
    found = np.isin(rows.keys, known["keys"])
    if "contents" in known:
        found |= np.isin(rows.contents, known["contents"])
    return int(found.sum())


def hashes(lock: Path) -> dict[str, str]:
    """Path -> DVC's hash of everything that a `dvc.lock` says was read or made, code left out.

    Raises:
        UserError: where it is no such file.
    """
    try:
        stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages") or {}
        entries = [entry for stage in stages.values() for kind in ("deps", "outs") for entry in stage.get(kind) or []]
        return {str(entry["path"]): str(entry["md5"]) for entry in entries if not str(entry["path"]).endswith(".py")}
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, AttributeError, KeyError) as error:
        raise UserError(f"{lock} is damaged ({error}): `git checkout {lock.name}` brings it back") from None


def _sorted(folder: Path, split: str, kind: str) -> "npt.NDArray[np.uint64]":
    import numpy as np

    return np.sort(np.load(folder / split / f"{kind}.npy"))
