"""Which trainings a comparison is made of, each a whole `params.yaml`, checked before anything runs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distillery.errors import UserError
from distillery.objectives.configs import FITS, KINDS, NAMES, label_loss
from distillery.objectives.configs.feature import Feature
from distillery.schema import Kind
from tasks.params import FILE, Params, load, parse
from tasks.params.sections import LABELS_ALONE, Comparison

Document = dict[str, Any]

PLAIN, KD, OWN, ALL = "plain", "kd", "own", "all"
STUDENT = "student"
# Seeds lie apart, because peers and generations take those that follow their own.
STRIDE = 100
# What a student hears from a teacher in the plainest way, for every kind of target.
PLAIN_KD: dict[Kind, list[Document]] = {
    "classes": [{"name": "kd", "weight": 0.9, "temperature": 2.0}, {"name": "cross_entropy", "weight": 0.1}],
    "labels": [
        {"name": "multilabel_kd", "weight": 0.9, "temperature": 2.0},
        {"name": "multilabel_cross_entropy", "weight": 0.1},
    ],
    "number": [{"name": "mse_teacher", "weight": 0.9}, {"name": "mse", "weight": 0.1}],
}


@dataclass(frozen=True)
class Entry:
    """One line of the leaderboard.

    Attributes:
        method: its name.
        student: its name.
        document: what `params.yaml` would hold.
        blocks: the parts of it that `--adopt` writes; none for the student alone.
    """

    method: str
    student: str
    document: Document
    blocks: Mapping[str, Document]

    @property
    def title(self) -> str:
        """Method and student."""
        return f"{self.method}/{self.student}"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        entry: what is trained.
        seed: of weights, order and augmentation.
    """

    entry: Entry
    seed: int

    @property
    def key(self) -> str:
        """Names all parameters that decide about the result."""
        document = self.entry.document
        decisive = [self.entry.method == PLAIN, self.seed, document["student"], document["distill"]]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """Method, student and seed."""
        return f"{self.entry.title} seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        entries: the student alone first, then plain KD, then the others in the order asked for.
        seeds: of each entry.
        left_out: of `all`: method and student -> why it cannot run here.
        params: of the project.
        whole: whether `all` was asked for, so that what does not fit the data may be left out.
    """

    entries: list[Entry]
    seeds: list[int]
    left_out: dict[str, str]
    params: Params
    whole: bool

    @property
    def jobs(self) -> list[Job]:
        """Every training, one seed of all entries before the next."""
        return [Job(entry, seed) for seed in self.seeds for entry in self.entries]

    @property
    def teachers(self) -> list[str]:
        """Those who are listened to."""
        return sorted({key for entry in self.entries for key in entry.document["distill"]["teachers"]})


def make(root: Path, objectives: Sequence[str], students: Sequence[str], seeds: int | None) -> Plan:
    """Plans a comparison of a project.

    Args:
        root: the project's folder.
        objectives: methods of the `comparison` block, names of objectives, or `all`; none: every method of the
            block, and where it has none `distill` as it stands.
        students: of the block, or `student`, the project's own; none: every one of the block, else the own.
        seeds: trainings of each; by default as the block says.

    Raises:
        UserError: for an unknown name (with the list), or where parameters refuse a method, with the reasons.
    """
    params = load(root)
    document = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))
    comparison = params.comparison
    named = _named(document.pop("comparison", None) or {}, document["distill"], params)
    chosen = {PLAIN: named[KD], KD: named[KD], **{name: named[name] for name in _chosen(named, objectives, params)}}
    entries: list[Entry] = []
    refused: dict[str, str] = {}
    for student, block in _students(document, students, comparison).items():
        for method, changes in chosen.items():
            entry = _entry(document, params, method, changes, student, block)
            if method == OWN and any(entry.document == other.document for other in entries):
                # It is plain KD, which stands here already.
                continue
            try:
                parse(entry.document)
            except UserError as error:
                refused[entry.title] = " ".join(str(error).split()).removeprefix(f"{FILE} is not valid: ")
            else:
                entries.append(entry)
    whole = ALL in objectives
    vital = {title: why for title, why in refused.items() if not whole or title.split("/")[0] in (PLAIN, KD)}
    if vital:
        raise UserError("cannot run here:\n" + "\n".join(f"  {title}: {why}" for title, why in vital.items()))
    number = comparison.seeds if seeds is None else seeds
    return Plan(entries, [params.seed + STRIDE * at for at in range(number)], refused, params, whole)


def _named(block: Document, present: Document, params: Params) -> dict[str, Document]:
    """Method -> keys of `distill` that it changes: an objective's own, those of the block (which win), the present."""
    kinds = params.data.columns.targets
    methods: dict[str, Document] = {
        name: {"objectives": _beside_labels(name, kinds)} for name in NAMES if name not in LABELS_ALONE
    }
    methods[KD] = {"objectives": _by_target({target: PLAIN_KD[kind] for target, kind in kinds.items()})}
    methods |= block.get("methods") or {}
    for name in methods:
        if name in (PLAIN, ALL, OWN) or "/" in name:
            raise UserError(f"comparison.methods.{name}: that name has a meaning here, take another")
    methods[OWN] = {key: value for key, value in present.items() if key != "training"}
    return methods


def _beside_labels(name: str, kinds: Mapping[str, Kind]) -> Any:
    """An objective with its defaults beside the loss on labels; a target that it is not about gets plain KD."""
    first = next(iter(kinds))
    found: dict[str, list[Document]] = {}
    for target, kind in kinds.items():
        # What compares layers does so once, whatever is predicted from them.
        fits = kind in FITS[name] and (target == first or not issubclass(KINDS[name], Feature))
        alone = len(kinds) == 1
        found[target] = [{"name": name}, {"name": label_loss(kind).name}] if fits or alone else PLAIN_KD[kind]
    return _by_target(found)


def _by_target(objectives: Mapping[str, list[Document]]) -> Any:
    """A list where there is one target."""
    return dict(objectives) if len(objectives) > 1 else next(iter(objectives.values()))


def _chosen(named: Mapping[str, Document], objectives: Sequence[str], params: Params) -> list[str]:
    """Names of methods in the order asked for; of `all`, objectives that are about what is predicted."""
    unknown = [name for name in objectives if name not in named and name != ALL]
    if unknown:
        known = ", ".join([ALL, *named])
        alone = " (labels alone are always compared, as plain)" if set(unknown) & (LABELS_ALONE | {PLAIN}) else ""
        raise UserError(f"--objectives: {', '.join(map(repr, unknown))} is no method{alone}; there are {known}")
    if not objectives:
        return list(params.comparison.methods) or [OWN]
    about = set(params.data.columns.targets.values())
    everything = [name for name in named if name != OWN and about & set(FITS.get(name, about))]
    found = [everything if name == ALL else [name] for name in objectives]
    return [name for names in found for name in names]


def _students(document: Document, students: Sequence[str], comparison: Comparison) -> dict[str, Document]:
    """Name -> a `student` block."""
    known = {
        STUDENT: document["student"],
        **{name: one.model_dump(mode="json", exclude_unset=True) for name, one in comparison.students.items()},
    }
    for name in students:
        if name not in known:
            raise UserError(f"--students: no student is called {name!r}; there are {', '.join(known)}")
    return {name: known[name] for name in students or comparison.students or [STUDENT]}


def _entry(document: Document, params: Params, method: str, changes: Document, student: str, block: Document) -> Entry:
    """A method on a student as a whole document."""
    changed = dict(changes)
    own = {**block, **(changed.pop("student", None) or {})}
    present = document["distill"]
    scheme = changed.get("scheme", "offline")
    heard = [] if scheme == "self" else list(params.distill.teachers or params.teachers)
    kept = {key: present[key] for key in ("mixing", "weighting") if key in present and scheme == "offline"}
    kinds = params.data.columns.targets
    distill = {
        "scheme": scheme,
        "teachers": heard,
        **kept,
        "objectives": _by_target({target: PLAIN_KD[kind] for target, kind in kinds.items()}),
        **changed,
    }
    blocks = {} if method == PLAIN else {"student": own, "distill": distill}
    whole = {**document, "student": own, "distill": {**distill, "training": present["training"]}}
    return Entry(method, student, whole, blocks)
