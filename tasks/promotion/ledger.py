"""The alias `champion`, and the record of every move of it: append-only runs of an experiment in MLflow itself."""

import getpass
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from distillery.errors import UserError
from tasks.tracking.service import clean_key, experiment_id, texts
from tasks.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run

CHAMPION, PREVIOUS = "champion", "previous"
INTENDED, DONE, UNDONE = "intended", "done", "undone"
# A move takes seconds; one that another machine began so long ago has died.
LEASE_SECONDS = 600.0
_PAGE = 1000


@dataclass(frozen=True)
class Move:
    """One move of the alias `champion`.

    Attributes:
        sequence: numbers the moves of a model; it, not the clock, says what came after what.
        time: by the clock of who moved, in UTC.
        model: name in the registry.
        action: `promote`, `rollback`, or `found` for a move that was made past this program.
        before: the champion until then; None: there was none.
        after: the champion from then on; None: there is none.
        previous: what the alias `previous` names from then on; None: nothing.
        who: user@host.
        command: what was run.
        why: the reason, for people.
        figures: of the gates, `accuracy` of the new one and `accuracy_before`.
        state: `intended`, `done` or `undone`.
        place: host and folder of the project that moved.
        run_id: of its run in MLflow, which holds `promotion.json` too.
    """

    sequence: int
    time: datetime
    model: str
    action: str
    before: str | None
    after: str | None
    previous: str | None
    who: str
    command: str
    why: str
    figures: Mapping[str, float]
    state: str
    place: str
    run_id: str

    @classmethod
    def of(cls, run: "Run") -> Self:
        """Reads a move from its run."""
        tags = run.data.tags
        return cls(
            sequence=int(tags["sequence"]),
            time=datetime.fromtimestamp(int(tags["time"]) / 1000, UTC),
            model=tags["model"],
            action=tags["action"],
            before=tags["before"] or None,
            after=tags["after"] or None,
            # Moves of earlier releases always left the champion before them.
            previous=tags.get("previous", tags["before"]) or None,
            who=tags["who"],
            command=tags["command"],
            why=tags["why"],
            figures=dict(sorted(run.data.metrics.items())),
            state=tags["state"],
            place=tags["place"],
            run_id=run.info.run_id,
        )


class Ledger:
    """The champion of one registered model.

    Whoever moves holds the lock of the project, `.state/promotion.lock`. Other machines have other projects: a move is
    announced in MLflow first, and given up where another one is announced too.
    """

    def __init__(self, tracker: Tracker, model: str, clock: Callable[[], float] = time.time) -> None:
        self.model = model
        self._client = tracker.client
        self._clock = clock
        self._experiment = experiment_id(tracker.client, tracker.root, tracker.uri, f"{tracker.experiment}-history")
        self._place = f"{socket.gethostname()}:{tracker.root}"

    def versions(self) -> list[int]:
        """The versions that exist.

        Raises:
            UserError: where nothing is registered under this name.
        """
        found = self._client.search_model_versions(f"name = '{self.model}'")
        if not found:
            raise UserError(f"the registry has no {self.model}: `python -m flows run` registers it")
        return sorted(int(one.version) for one in found)

    def alias(self, name: str) -> str | None:
        """The version that an alias names; None where there is none, or where it was deleted."""
        version = self._client.get_registered_model(self.model).aliases.get(name)
        return str(version) if version is not None and int(version) in self.versions() else None

    def moves(self) -> list[Move]:
        """Every move, in order: also those that were undone or are not finished."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.model = '{self.model}'", max_results=_PAGE, page_token=token
            )
            runs += page
            if not page.token:
                break
            token = page.token
        return sorted((Move.of(run) for run in runs), key=lambda move: (move.sequence, move.time))

    def history(self) -> list[Move]:
        """The moves that were made, in order."""
        return [move for move in self.moves() if move.state == DONE]

    def settle(self) -> list[str]:
        """Finishes or undoes what a killed process left, and notes moves that were made past this program.

        Returns:
            What was found, a sentence each.
        """
        told: list[str] = []
        for move in self.moves():
            if move.state == INTENDED:
                if not self._is_abandoned(move):
                    return told
                told.append(self._settle(move))
        done = self.history()
        known, now = done[-1].after if done else None, self.alias(CHAMPION)
        if known != now:
            why = f"the alias was moved past this program, from {known or 'none'} to {now or 'none'}"
            if known is not None and int(known) not in self.versions():
                why = f"version {known} was deleted, and {now or 'none'} is champion"
            run = self._open("found", known, now, self.alias(PREVIOUS), why, DONE)
            self._client.set_terminated(run, "FINISHED", self._now())
            told.append(why)
        return told

    def move(
        self,
        after: str | None,
        action: str,
        why: str,
        *,
        before: str | None,
        previous: str | None = None,
        figures: Mapping[str, float] | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        """Makes a version the champion, and the champion until then the previous one.

        Where there was no champion until then, the previous one stays.

        Args:
            after: the version; None takes the alias away.
            action: `promote` or `rollback`.
            why: the reason.
            before: the champion as the caller knows it.
            previous: the previous one from then on, instead of `before`; empty: none.
            figures: of the gates.
            files: kept with the record.

        Raises:
            UserError: where the champion is another one by now, or somebody else is about to move it; nothing has
                changed then.
        """
        for _ in self.steps(after, action, why, before=before, previous=previous, figures=figures, files=files):
            pass

    def steps(
        self,
        after: str | None,
        action: str,
        why: str,
        *,
        before: str | None,
        previous: str | None = None,
        figures: Mapping[str, float] | None = None,
        files: Sequence[Path] = (),
    ) -> Iterator[str]:
        """What `move` does, step by step; after each the old or the new champion stands, and `settle` does the rest."""
        from mlflow.entities import Metric

        if previous is None:
            previous = before or self.alias(PREVIOUS)
        # Who goes back to the previous one has none any more, where the champion was deleted.
        previous = None if previous in ("", after) else previous
        run = self._open(action, before, after, previous, why, INTENDED)
        yield "announced"
        now = self._now()
        metrics = [Metric(clean_key(name), value, now, 0) for name, value in (figures or {}).items()]
        self._client.log_batch(run, metrics)
        for file in files:
            self._client.log_artifact(run, str(file))
        yield "described"
        self._check(run, before)
        self._point(CHAMPION, after)
        yield "moved"
        self._point(PREVIOUS, previous)
        yield "kept the previous one"
        self._close(run, DONE)
        yield "done"

    def _open(
        self, action: str, before: str | None, after: str | None, previous: str | None, why: str, state: str
    ) -> str:
        """Makes the run of a move and returns its id."""
        moves, now = self.moves(), self._now()
        latest = max((int(move.time.timestamp() * 1000) for move in moves), default=now)
        tags = {
            "model": self.model,
            "sequence": max((move.sequence for move in moves), default=0) + 1,
            "time": now,
            "action": action,
            "before": before or "",
            "after": after or "",
            # Before anything moves, so that whoever finishes a move need not guess it.
            "previous": previous or "",
            "who": _who(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "why": why,
            "place": self._place,
            "state": state,
        }
        if latest > now:
            tags["clock_went_back_seconds"] = (latest - now) / 1000
        name = f"{action} {self.model} {before or 'none'} to {after or 'none'}"
        return str(self._client.create_run(self._experiment, now, texts(tags), name).info.run_id)

    def _check(self, run: str, before: str | None) -> None:
        """Gives a move up where it is not the only one, or the champion is not the one that was judged."""
        mine = [move for move in self.moves() if move.state == INTENDED]
        others = [move for move in mine if move.run_id != run]
        now = self.alias(CHAMPION)
        if others:
            self._close(run, UNDONE)
            raise UserError(
                f"{others[0].who} is moving the champion of {self.model} right now; try again in a minute "
                f"(a move that died is settled {LEASE_SECONDS / 60:.0f} minutes after it began)"
            )
        if len(mine) != 1 or now != before:
            self._close(run, UNDONE)
            raise UserError(
                f"the champion of {self.model} was {before or 'none'} and is {now or 'none'} by now; run again"
            )

    def _point(self, alias: str, version: str | None) -> None:
        """Sets an alias; takes it away where there is no such version."""
        if version is not None and int(version) in self.versions():
            self._client.set_registered_model_alias(self.model, alias, version)
        elif alias in self._client.get_registered_model(self.model).aliases:
            self._client.delete_registered_model_alias(self.model, alias)

    def _close(self, run: str, state: str) -> None:
        self._client.set_tag(run, "state", state)
        self._client.set_terminated(run, "FINISHED" if state == DONE else "KILLED", self._now())

    def _is_abandoned(self, move: Move) -> bool:
        """Whether nobody works at a move any more: who asks holds the lock of this project."""
        return move.place == self._place or abs(self._clock() - move.time.timestamp()) > LEASE_SECONDS

    def _settle(self, move: Move) -> str:
        what = (
            f"interrupted {move.action} of {move.who}, {self.model} {move.before or 'none'} to {move.after or 'none'}"
        )
        if self.alias(CHAMPION) == move.after:
            self._point(PREVIOUS, move.previous)
            self._close(move.run_id, DONE)
            return f"finished an {what}"
        self._close(move.run_id, UNDONE)
        return f"undid an {what}"

    def _now(self) -> int:
        """Milliseconds since 1970."""
        return int(self._clock() * 1000)


def champion_at(history: Sequence[Move], moment: datetime) -> str | None:
    """Which version was champion at a moment; None: none was.

    A clock that went back does not change the order: a move counts as made no earlier than those before it.
    """
    champion, latest = None, datetime.min.replace(tzinfo=UTC)
    for move in history:
        latest = max(latest, move.time)
        if latest > moment:
            break
        champion = move.after
    return champion


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        # A container may run under a number that has no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
