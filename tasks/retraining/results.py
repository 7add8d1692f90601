"""What is told of batches and of a retraining, as JSON."""

from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from distillery.config import Config
from distillery.drift import Drift

RETRAINING = "reports/retraining.json"


class Batch(Config):
    """What was found in one batch, and what became of it.

    Attributes:
        name: in `data/incoming`.
        digest: of its files.
        outcome: accepted: it is a partition now; quarantined: it is bad; known: all of it was there already.
        folder: where its files are now, below the project's folder.
        looked: when it was looked at.
        rows: of the batch.
        new: rows whose inputs were not known.
        labels: of known rows, that were missing.
        problems: why it is bad; the first words for people.
        drift: of the new rows against those of before.
    """

    name: str
    digest: str
    outcome: Literal["accepted", "quarantined", "known"]
    folder: str
    looked: datetime
    rows: int = 0
    new: int = 0
    labels: int = 0
    problems: tuple[str, ...] = ()
    drift: tuple[Drift, ...] = ()

    @property
    def drifted(self) -> tuple[str, ...]:
        """What has drifted."""
        return tuple(each.what for each in self.drift if each.drifted)


class Retrained(Config):
    """The content of `reports/retraining.json`.

    Attributes:
        batches: in the order in which they were looked at.
        snapshot: partitions that teachers have learned from.
        advanced: why it was raised; empty: it was not.
        promotion: the sentence about the challenger; empty: nothing was decided.
        outcome: of the promotion.
    """

    batches: tuple[Batch, ...] = ()
    snapshot: int = 0
    advanced: str = ""
    promotion: str = ""
    outcome: Literal["", "promoted", "kept", "unchanged"] = ""

    def then(self, later: Self) -> Self:
        """Both rounds of one retraining as one."""
        return later.model_copy(
            update={"batches": (*self.batches, *later.batches), "advanced": later.advanced or self.advanced}
        )

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads a report."""
        return cls.model_validate_json(file.read_bytes())

    def write(self, file: Path) -> None:
        """Writes the report in one go."""
        save(self, file)


def save(document: Config, file: Path) -> None:
    """Writes JSON beside and renames it, so that a kill leaves the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.new")
    beside.write_text(document.model_dump_json(indent=2) + "\n", encoding="utf-8")
    beside.replace(file)
