"""What is told of batches and of a retraining, as JSON."""

from datetime import datetime
from typing import ClassVar, Literal, Self

from distillery.drift import Drift
from tasks.document import Document

RETRAINING = "reports/retraining.json"


class Batch(Document):
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

    made_by: ClassVar[str] = "python -m flows retrain"

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


class Retrained(Document):
    """The content of `reports/retraining.json`.

    Attributes:
        batches: in the order in which they were looked at.
        snapshot: partitions that teachers have learned from.
        advanced: why it was raised; empty: it was not.
        promotion: the sentence about the challenger; empty: nothing was decided.
        outcome: of the promotion.
    """

    made_by: ClassVar[str] = "python -m flows retrain"

    batches: tuple[Batch, ...] = ()
    snapshot: int = 0
    advanced: str = ""
    promotion: str = ""
    outcome: Literal["", "promoted", "kept", "unchanged"] = ""

    def then(self, later: Self) -> Self:
        """Both rounds of one retraining as one; a later one may decide nothing, and the earlier decision stands."""
        decided = later if later.outcome else self
        return later.model_copy(
            update={
                "batches": (*self.batches, *later.batches),
                "advanced": later.advanced or self.advanced,
                "promotion": decided.promotion,
                "outcome": decided.outcome,
            }
        )
