"""`reports/promotion.json`: what was measured of a challenger, and what came of it."""

from typing import Literal

from distillery.config import Config
from tasks.document import Document

PROMOTION = "reports/promotion.json"


class Gate(Config):
    """One thing that a challenger must show.

    Attributes:
        name: short and stable, `accuracy`, `recall of 7`, `latency`.
        reference: the figure of the model it is held against; None where there is none.
        challenger: its own figure.
        low: of the interval of the paired difference, where there is one.
        high: likewise.
        limit: what is asked, in words.
        passed: whether it is so.
        said: one sentence for whoever has to know why.
    """

    name: str
    reference: float | None
    challenger: float | None
    low: float | None = None
    high: float | None = None
    limit: str
    passed: bool
    said: str


class TestSet(Config):
    """The rows that both models were measured on.

    Attributes:
        sha256: of keys, targets and inputs.
        dvc: DVC's hash of the folder; None where the files are not what `dvc.lock` records.
        rows: their number.
        challenger_sha256: of the test set when the challenger was registered.
        reference_sha256: likewise of the model it is held against.
    """

    sha256: str
    dvc: str | None
    rows: int
    challenger_sha256: str | None
    reference_sha256: str | None


class Promotion(Document):
    """The outcome.

    Attributes:
        model: name in the registry.
        challenger: the version that was judged.
        champion: the champion until then; None: there was none.
        reference: what the challenger was held against, in words.
        teacher: whose answers agreement refers to, as `name/version`; None without one.
        test_set: what was measured on.
        gates: all of them.
        notes: what a reader has to know besides.
        outcome: `promoted`, `kept` (the champion stays) or `unchanged` (the challenger is the champion already).
        reasons: why not, a sentence each.
    """

    model: str
    challenger: str
    champion: str | None
    reference: str | None = None
    teacher: str | None = None
    test_set: TestSet | None = None
    gates: tuple[Gate, ...] = ()
    notes: tuple[str, ...] = ()
    outcome: Literal["promoted", "kept", "unchanged"]
    reasons: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, float]:
        """Gate -> the challenger's figure, and with `_before` behind the name that of the other one."""
        found: dict[str, float] = {}
        for gate in self.gates:
            if gate.challenger is not None:
                found[gate.name] = gate.challenger
            if gate.reference is not None:
                found[f"{gate.name}_before"] = gate.reference
        return found
