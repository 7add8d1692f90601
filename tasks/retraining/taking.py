"""What happens to a batch: it becomes a partition, goes to quarantine, or is known already."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from distillery import partitions
from tasks.dvc_graph import Graph
from tasks.params import Params
from tasks.params_file import change
from tasks.retraining import incoming
from tasks.retraining.incoming import Arrival, Journal
from tasks.retraining.judging import judge
from tasks.retraining.results import Batch, save

Say = Callable[[str], None]


def settle(root: Path, graph: Graph, say: Say) -> Journal | None:
    """Finishes or undoes what a killed retraining left; returns its journal where it has not come to its end."""
    journal = Journal.read(root)
    for place, taken in (journal.taken if journal else {}).items():
        if (root / place).exists():
            say(f"{place} was taken in by a retraining that was interrupted")
            incoming.forget(root, taken)
    if journal and journal.taken:
        there = [
            report for place in journal.taken if (report := _report(root, place)).exists() and (root / place).exists()
        ]
        batches = tuple(Batch.model_validate_json(file.read_bytes()) for file in there)
        journal = Journal(batches=(*journal.batches, *batches))
        journal.write(root)
    for partition in partitions.found(root / partitions.FOLDER):
        if not partition.folder.with_name(f"{partition.name}.dvc").exists():
            graph.add(partition.folder)
    for report in (root / partitions.FOLDER).glob("*.json"):
        if not report.with_suffix("").exists() and not report.with_suffix(".dvc").exists():
            report.unlink()
    return journal


def take(root: Path, params: Params, graph: Graph, arrival: Arrival) -> Batch:
    """Looks at a batch and gives it its place.

    Raises:
        UnfinishedError: where somebody still writes it.
        UserError: where DVC does not take it.
    """
    place, signs = incoming.staged(root, arrival)
    digest = partitions.digest(place)
    number = partitions.next_number(root / partitions.FOLDER, params.retraining.snapshot)
    journal = Journal.read(root) or Journal()
    same = [one for one in partitions.found(root / partitions.FOLDER) if one.digest == digest]
    if same:
        batch = Batch(
            name=arrival.name,
            digest=digest,
            outcome="known",
            folder=same[0].folder.relative_to(root).as_posix(),
            looked=datetime.now(UTC),
        )
    else:
        batch = _looked_at(root, params, arrival.name, digest, number)
        journal.model_copy(update={"taken": {batch.folder: signs}}).write(root)
        _put(root, batch)
        if batch.outcome == "accepted":
            graph.add(root / batch.folder)
    incoming.forget(root, signs)
    Journal(batches=(*journal.batches, batch)).write(root)
    shutil.rmtree(root / incoming.STAGED, ignore_errors=True)
    return batch


def _looked_at(root: Path, params: Params, name: str, digest: str, number: int) -> Batch:
    """What the staged batch is, and where it is to go."""
    verdict = judge(root, params, root / incoming.STAGED / incoming.FILES, number, root / incoming.STAGED / "data_docs")
    is_news = bool(verdict.new or verdict.labels)
    outcome = "quarantined" if verdict.problems else "accepted" if is_news else "known"
    if outcome == "accepted":
        folder = partitions.FOLDER / f"{number:04}-{digest}"
    else:
        folder = incoming.QUARANTINE / f"{name}-{digest}"
    return Batch(
        name=name,
        digest=digest,
        outcome=outcome,
        folder=folder.as_posix(),
        looked=datetime.now(UTC),
        rows=verdict.rows,
        new=verdict.new,
        labels=verdict.labels,
        problems=verdict.problems,
        drift=verdict.drift,
    )


def _put(root: Path, batch: Batch) -> None:
    """Moves the staged batch to its place by one rename, its report first."""
    staged, place = root / incoming.STAGED, root / batch.folder
    place.parent.mkdir(parents=True, exist_ok=True)
    if batch.outcome == "accepted":
        save(batch, _report(root, batch.folder))
        (staged / incoming.FILES).rename(place)
        return
    save(batch, staged / "report.json")
    shutil.rmtree(place, ignore_errors=True)  # the same bad batch, sent again
    staged.rename(place)


def _report(root: Path, folder: str) -> Path:
    """Where the report of a batch lies: beside a partition, whose files are not touched, else in its folder."""
    place = root / folder
    return place.with_name(f"{place.name}.json") if place.parent.name == "partitions" else place / "report.json"


def advance(root: Path, params: Params) -> str:
    """Raises `retraining.snapshot` where the parameters ask for it; returns why, or nothing."""
    arrived = [one for one in partitions.found(root / partitions.FOLDER) if one.number > params.retraining.snapshot]
    reports = [Batch.model_validate_json(_report(root, str(one.folder)).read_bytes()) for one in arrived]
    drifted = list(dict.fromkeys(what for report in reports for what in report.drifted))
    policy = params.retraining.teacher
    if not arrived or policy == "never" or (policy == "on_drift" and not drifted):
        return ""
    section = params.retraining.model_dump(mode="json", exclude_unset=True) | {"snapshot": arrived[-1].number}
    change(root, {"retraining": section})
    return f"{', '.join(drifted)} drifted" if policy == "on_drift" else "retraining.teacher: always"
