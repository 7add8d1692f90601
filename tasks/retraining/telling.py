"""Batches and retrainings as people read them; shared by the terminal, Prefect's artifacts and Git's messages."""

from collections.abc import Sequence

from tasks.reporting import wording
from tasks.retraining.results import Batch, Retrained


def line(batch: Batch) -> str:
    """What became of a batch, in one line."""
    head = f"{batch.name}: {batch.outcome}"
    if batch.outcome == "quarantined":
        more = f" (and {len(batch.problems) - 1} more)" if len(batch.problems) > 1 else ""
        return f"{head}: {batch.problems[0]}{more}; its files and report: {batch.folder}"
    if batch.outcome == "known":
        return f"{head}: nothing of it is new; it is in {batch.folder}"
    return f"{head} as {batch.folder}: {_contents(batch)}"


def _contents(batch: Batch) -> str:
    labels = f", {wording.count(batch.labels)} labels of known rows" if batch.labels else ""
    drift = f"; drifted: {', '.join(batch.drifted)}" if batch.drifted else "; no drift" if batch.drift else ""
    return f"{wording.count(batch.rows)} rows, {wording.count(batch.new)} new{labels}{drift}"


def rows(found: Retrained) -> list[dict[str, str]]:
    """A line for each batch."""
    return [
        {
            "batch": batch.name,
            "": batch.outcome,
            "rows": wording.count(batch.rows),
            "new": wording.count(batch.new),
            "labels": wording.count(batch.labels),
            "drifted": ", ".join(batch.drifted) or ("no" if batch.drift else "\u2013"),
            "folder": batch.folder,
        }
        for batch in found.batches
    ]


def drift_rows(batch: Batch) -> list[dict[str, str]]:
    """A line for each test of drift."""
    return [
        {
            "what": each.what,
            "test": each.test,
            "moved, %": f"{100 * each.effect:.1f}",
            "p": f"{each.corrected:.2g}",
            "": "DRIFTED" if each.drifted else "",
        }
        for each in batch.drift
    ]


def summary(found: Retrained) -> str:
    """The whole in a few sentences."""
    taken = sum(batch.outcome == "accepted" for batch in found.batches)
    said = [f"{taken} of {len(found.batches)} batches taken in." if found.batches else "No new data."]
    if found.advanced:
        said.append(f"Teachers learn from all partitions up to number {found.snapshot} now: {found.advanced}.")
    return " ".join([*said, *([found.promotion] if found.promotion else [])])


def data_message(batches: Sequence[Batch]) -> str:
    """For the commit of data."""
    taken = [batch for batch in batches if batch.outcome == "accepted"]
    named = ", ".join(batch.name for batch in taken) or "data"
    return "\n".join([f"Take in {named}", "", *(f"{batch.name}: {_contents(batch)}" for batch in taken)]).strip()


def results_message(found: Retrained) -> str:
    """For the commit of what was made of them."""
    return f"Retrain on {', '.join(batch.name for batch in found.batches if batch.outcome == 'accepted') or 'the data'}"
