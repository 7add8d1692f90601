"""What happens to a batch: it becomes a partition, goes to quarantine, or is known already."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from distillery import partitions
from tasks.params import Params
from tasks.params.file import change
from tasks.retraining import incoming
from tasks.retraining.incoming import Arrival, Journal, LeftError
from tasks.retraining.judging import judge
from tasks.retraining.results import Batch
from tasks.versioning.graph import Graph

Say = Callable[[str], None]


def settle(root: Path, graph: Graph, say: Say) -> Journal | None:
    """Finishes or undoes what a killed retraining left; returns its journal where it has not come to its end."""
    journal = Journal.left(root)
    taken = journal.taken if journal else {}
    whole = [place for place in taken if _is_whole(root / place)]
    for place in taken.keys() - set(whole):
        # Cut off half-way; the batch itself lies in data/incoming still, and is taken again.
        shutil.rmtree(root / place, ignore_errors=True)
    for partition in partitions.found(root / partitions.FOLDER):
        if not partition.folder.with_name(f"{partition.name}.dvc").exists():
            graph.add(partition.folder)
    for report in (root / partitions.FOLDER).glob("*.json"):
        if not report.with_suffix("").exists() and not report.with_suffix(".dvc").exists():
            report.unlink()
    if journal and taken:
        for place in whole:
            say(f"{place} was taken in by a retraining that was interrupted")
            incoming.forget(root, taken[place])
        found = (Batch.read(_report(root, place)) for place in whole)
        journal = Journal(batches=(*journal.batches, *found))
        journal.keep(root)
    return journal


def _is_whole(place: Path) -> bool:
    """Whether a folder holds the very files that its name tells the digest of."""
    files = place if place.parent.name == partitions.FOLDER.name else place / incoming.FILES
    return files.is_dir() and partitions.digest(files) == place.name.rpartition("-")[2]


def take(root: Path, params: Params, graph: Graph, arrival: Arrival) -> Batch:
    """Looks at a batch and gives it its place.

    Raises:
        LeftError: where somebody still writes it, or it may not be read or removed.
        UserError: where DVC does not take it.
    """
    place, signs = incoming.staged(root, arrival)
    digest = partitions.digest(place)
    number = partitions.next_number(root / partitions.FOLDER, params.retraining.snapshot)
    journal = Journal.left(root) or Journal()
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
        if arrival.signs() != signs:
            raise LeftError(arrival.name, "is still being written", signs)
        journal.model_copy(update={"taken": {batch.folder: signs}}).keep(root)
        _put(root, batch)
        if batch.outcome == "accepted":
            graph.add(root / batch.folder)
    incoming.forget(root, signs)
    Journal(batches=(*journal.batches, batch)).keep(root)
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
        batch.write(_report(root, batch.folder))
        (staged / incoming.FILES).rename(place)
        return
    if _is_whole(place):  # the same bad batch, sent again
        batch.write(place / "report.json")
        return
    shutil.rmtree(place, ignore_errors=True)
    batch.write(staged / "report.json")
    staged.rename(place)


def _report(root: Path, folder: str) -> Path:
    """Where the report of a batch lies: beside a partition, whose files are not touched, else in its folder."""
    place = root / folder
    return place.with_name(f"{place.name}.json") if place.parent.name == "partitions" else place / "report.json"


def advance(root: Path, params: Params) -> str:
    """Raises `retraining.snapshot` where the parameters ask for it; returns why, or nothing."""
    policy = params.retraining.teacher
    arrived = [one for one in partitions.found(root / partitions.FOLDER) if one.number > params.retraining.snapshot]
    if not arrived or policy == "never":
        return ""
    drifted = list(dict.fromkeys(what for one in arrived for what in _drifted(root, one)))
    if policy == "on_drift" and not drifted:
        return ""
    section = params.retraining.model_dump(mode="json", exclude_unset=True) | {"snapshot": arrived[-1].number}
    change(root, {"retraining": section})
    return f"{', '.join(drifted)} drifted" if policy == "on_drift" else "retraining.teacher: always"


def _drifted(root: Path, partition: partitions.Partition) -> tuple[str, ...]:
    """What had drifted in a partition; nothing is known of one that was put there by hand."""
    report = _report(root, partition.folder.relative_to(root).as_posix())
    return Batch.read(report).drifted if report.exists() else ()
