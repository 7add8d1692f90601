"""Moves the champion: forward behind the gates, and back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from distillery.errors import UserError
from flows.registry import serving
from flows.registry.files import Files, downloaded, registered_files
from flows.registry.registration import ALIAS
from tasks.alone import alone
from tasks.environment import quick_imports
from tasks.folders import STATE
from tasks.params import Params
from tasks.promotion import descent
from tasks.promotion.ledger import CHAMPION, PREVIOUS, Ledger
from tasks.promotion.results import PROMOTION, Gate, Promotion, TestSet
from tasks.tracking.service import AwayError, first_line, health_problem, is_http, texts
from tasks.tracking.tracker import Tracker
from tasks.versioning.graph import Graph

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from distillery.columns import Columns
    from tasks.promotion.scoring import Subject

Say = Callable[[str], None]
PREPARE = "prepare"  # makes the test set


def locked(root: Path, say: Say) -> AbstractContextManager[None]:
    """The project's lock of promotions and rollbacks, waited for; a process may take it again."""
    return alone(root, "promotion", "waiting for another promotion or rollback of this project", say)


@contextmanager
def held(root: Path, say: Say) -> Iterator[Graph]:
    """The files that `prepare` makes, for this process alone; who works on them is waited for."""
    with quick_imports():
        graph = Graph.open(root)
        graph.plan([PREPARE])
    with graph.hold([PREPARE], wait=say):
        yield graph


@contextmanager
def in_turn(root: Path, say: Say) -> Iterator[None]:
    """`locked`, once nobody works on the test set: who rolls back is not to wait for somebody's run of hours."""
    with held(root, say):
        pass
    with locked(root, say):
        yield


@contextmanager
def settled(root: Path, tracker: Tracker, model: str, say: Say) -> Iterator[Ledger]:
    """The ledger of a model for one process at a time; what a killed one left is finished or undone.

    Raises:
        UserError: where nothing is registered, or the registry is lost on the way: then nothing or everything has
            changed, and whoever comes next finds out.
    """
    from mlflow.exceptions import MlflowException

    with locked(root, say):
        try:
            ledger = Ledger(tracker, model)
            ledger.versions()
            for told in ledger.settle():
                say(told)
            yield ledger
        except MlflowException as error:
            is_away = is_http(tracker.uri) and health_problem(tracker.uri) is not None
            raise (AwayError if is_away else UserError)(
                f"the registry failed half-way ({first_line(error)}); the champion is the old or the new one, and "
                "`python -m flows history` finishes or undoes the move once the registry answers"
            ) from error


def promote(root: Path, params: Params, tracker: Tracker, say: Say, *, serve: bool = False) -> Promotion:
    """Holds the challenger against the champion, and makes it champion where it passes every gate.

    Writes `reports/promotion.json` and tags of the challenger's version.

    Args:
        root: the project's folder.
        params: with `gates`.
        tracker: whose registry and history.
        say: told what a reader has to know on the way.
        serve: also start `mlflow models serve` and ask it, whatever `gates.serve_check` says.

    Raises:
        UserError: where there is no challenger, it was trained on rows of the test set, a model cannot be measured or
            does not serve, or the registry is lost.
    """
    name = params.registry.student
    with settled(root, tracker, name, say) as ledger, ExitStack() as kept:
        challenger, champion = ledger.alias(ALIAS), ledger.alias(CHAMPION)
        if challenger is None:
            raise UserError(f"{name} has no challenger: `python -m flows run` registers one")
        if challenger == champion:
            return _written(
                root,
                Promotion(
                    model=name,
                    challenger=challenger,
                    champion=champion,
                    outcome="unchanged",
                    reasons=(f"version {challenger} is the challenger, and the champion already",),
                ),
            )
        version = tracker.client.get_model_version(name, challenger)
        folder = kept.enter_context(downloaded(root, tracker, version))
        found = _judged(root, params, tracker, version, folder, champion, say, kept)
        _tag(tracker, version, found)
        if found.outcome == "promoted":
            serving.check(root, f"models:/{name}/{challenger}", folder, tracker.uri)
            if serve or params.gates.serve_check:
                serving.check_server(root, folder, tracker.uri)
            why = f"passed {len(found.gates)} gates against {found.reference}"
            file = Path(kept.enter_context(TemporaryDirectory(dir=root / STATE))) / Path(PROMOTION).name
            found.write(file)
            previous = ledger.alias(PREVIOUS)
            ledger.move(challenger, "promote", why, before=champion, figures=found.figures, files=[file])
            _check_champion(tracker, ledger, folder, challenger, champion, previous)
        return _written(root, found)


def rollback(root: Path, params: Params, tracker: Tracker, say: Say, *, to: str | None, why: str) -> tuple[str, str]:
    """Makes the previous or a named version the champion; returns the champion before and after.

    Args:
        root: the project's folder.
        params: with the name of the student.
        tracker: whose registry and history.
        say: told what a reader has to know on the way.
        to: the version; None: the one with the alias `previous`.
        why: the reason, for the history.

    Raises:
        UserError: where there is no such version or it does not serve, or it is champion already.
    """
    name = params.registry.student
    with settled(root, tracker, name, say) as ledger:
        before, after = ledger.alias(CHAMPION), to or ledger.alias(PREVIOUS)
        existing = ledger.versions()
        listed = ", ".join(map(str, existing))
        if after is None:
            raise UserError(f"{name} has no previous version; name one with --to: there are {listed}")
        if after not in map(str, existing):
            raise UserError(f"{name} has no version {after}, or it was deleted; there are {listed}")
        if after == before:
            raise UserError(f"version {after} is the champion already; there are {listed}")
        version = tracker.client.get_model_version(name, after)
        if "rows" in version.tags:
            with downloaded(root, tracker, version) as folder:
                serving.check(root, f"models:/{name}/{after}", folder, tracker.uri)
        ledger.move(after, "rollback", why, before=before)
        return before or "none", after


def _judged(
    root: Path,
    params: Params,
    tracker: Tracker,
    version: "ModelVersion",
    folder: Path,
    champion: str | None,
    say: Say,
    kept: ExitStack,
) -> Promotion:
    """Measures the challenger and what it is held against, and asks every gate."""
    with quick_imports():
        from distillery.columns import Columns
        from tasks.promotion import scoring
        from tasks.promotion.gates import Judge

    with held(root, say) as graph:
        # Nothing is held while models are measured: stages put new files in place of old ones, so what is mapped stays.
        columns = Columns.open(root / descent.TEST)
        is_recorded = descent.TEST not in (graph.why(PREPARE).outputs or {})
        recorded = descent.hashes(root / descent.LOCK).get(descent.TEST) if is_recorded else None
    _refuse_seen(root, tracker, version, folder / descent.FOLDER, columns)
    notes: list[str] = []
    if recorded is None:
        notes.append(
            f"{descent.TEST} is not what {descent.LOCK} records, so its DVC hash is not told; `python -m flows run` "
            "makes and records it"
        )

    def measured(files: Files) -> "Subject":
        return scoring.Subject.measure(files.title, files.onnx, scoring.schema_of(files.description), columns)

    own = registered_files(folder, version)
    subject = measured(own).require_all(columns)
    reference_data = None
    if champion is not None:
        other = tracker.client.get_model_version(version.name, champion)
        place = kept.enter_context(downloaded(root, tracker, other))
        try:
            reference = measured(registered_files(place, other)).require_all(columns)
        except UserError as error:
            raise UserError(
                f"the champion cannot be held against the challenger: {error}; take its alias away in MLflow, and the "
                "challenger is judged as a first one"
            ) from error
        reference_data = descent.data_of(place / descent.FOLDER)
        overlap = descent.seen(place / descent.FOLDER, columns)
        if overlap:
            notes.append(f"the champion was trained on {overlap} of the test rows, so its figures are too good")
    else:
        alone = Files("the student alone", folder / descent.FOLDER / descent.ALONE, own.description, own.weights)
        reference = measured(alone).require_all(columns)
    # Of several the first, as in the report.
    teacher = None
    for taught in _teachers(tracker, version)[:1]:
        teacher = measured(registered_files(kept.enter_context(downloaded(root, tracker, taught)), taught))
    if teacher is None:
        notes.append("its teacher is not in the registry, so nothing is compared with it")
    say(f"measuring {subject.title} and {reference.title} on {len(columns)} test rows")
    latencies = scoring.latencies({"challenger": subject, "reference": reference})
    judge = Judge(params.gates, params.evaluate, params.primary, columns, subject, reference, teacher, champion is None)
    gates = judge.verdict(latencies)
    present = scoring.digest(columns)
    data = descent.data_of(folder / descent.FOLDER)
    test_set = TestSet(
        sha256=present,
        dvc=recorded,
        rows=len(columns),
        challenger_sha256=None if data is None else data.test_sha256,
        reference_sha256=None if reference_data is None else reference_data.test_sha256,
    )
    for who, known in (("challenger", test_set.challenger_sha256), ("champion", test_set.reference_sha256)):
        if known is not None and known != present:
            notes.append(
                f"the test set has changed since the {who} was registered: {known[:12]} then, {present[:12]} now"
            )
    failed = [gate for gate in gates if not gate.passed]
    return Promotion(
        model=version.name,
        challenger=str(version.version),
        champion=champion,
        reference=reference.title,
        teacher=None if teacher is None else teacher.title,
        test_set=test_set,
        gates=tuple(gates),
        notes=tuple(notes),
        outcome="kept" if failed else "promoted",
        reasons=tuple(f"{gate.name} ({gate.limit}): {gate.said}" for gate in failed),
    )


def _refuse_seen(root: Path, tracker: Tracker, version: "ModelVersion", lineage: Path, columns: "Columns") -> None:
    """Refuses a model that has seen a row of the test set, itself or through its teacher, or whose rows are unknown."""
    name, reason = f"{version.name} version {version.version}", None
    overlap = descent.seen(lineage, columns)
    if overlap is None:
        reason = f"{name} does not say on which rows it was trained: `python -m flows run` registers it anew"
    elif overlap:
        reason = (
            f"{name} was trained on {overlap} of the {len(columns)} test rows, so its figures would say nothing: "
            "`python -m flows run` makes one from the present split"
        )
    for teacher in _teachers(tracker, version):
        if "rows" in teacher.tags and not reason:
            with downloaded(root, tracker, teacher, descent.FOLDER) as known:
                overlap = descent.seen(known, columns)
            if overlap:
                reason = (
                    f"the teacher of {name}, {teacher.name} version {teacher.version}, was trained on {overlap} of "
                    f"the {len(columns)} test rows: train it anew"
                )
    if reason:
        tracker.client.set_model_version_tag(version.name, version.version, "promotion", f"refused: {reason}")
        raise UserError(reason)


def _teachers(tracker: Tracker, version: "ModelVersion") -> "list[ModelVersion]":
    """The registered teachers of a student that still exist."""
    from mlflow.exceptions import MlflowException

    found = []
    for each in filter(None, version.tags.get("teacher", "").split(", ")):
        name, _, number = each.rpartition("/")
        try:
            found.append(tracker.client.get_model_version(name, number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return found


def _check_champion(
    tracker: Tracker, ledger: Ledger, folder: Path, after: str, before: str | None, previous: str | None
) -> None:
    """Asks the new champion by its alias; where it does not answer, the old one comes back, and its previous one too.

    Else a rollback would go to the very version that does not serve.
    """
    try:
        serving.check(tracker.root, f"models:/{ledger.model}@{CHAMPION}", folder, tracker.uri)
    except UserError as error:
        ledger.move(before, "rollback", f"it did not serve: {error}", before=after, previous=previous or "")
        raise UserError(f"{error}; version {before or 'none'} is champion again") from error


def _tag(tracker: Tracker, version: "ModelVersion", found: Promotion) -> None:
    """Leaves the outcome with the version, beside what it was compared with."""
    said = "passed" if found.outcome == "promoted" else "failed: " + "; ".join(found.reasons)
    tags: Mapping[str, str] = {
        "promotion": f"{said} (against {found.reference})",
        "promotion_test_set": found.test_set.sha256 if found.test_set else "",
        **{f"gate.{gate.name}": _told(gate) for gate in found.gates},
    }
    for key, value in texts(tags).items():
        tracker.client.set_model_version_tag(version.name, version.version, key, value)


def _told(gate: Gate) -> str:
    return f"{'passed' if gate.passed else 'failed'}: {gate.said}"


def _written(root: Path, found: Promotion) -> Promotion:
    found.write(root / PROMOTION)
    return found
