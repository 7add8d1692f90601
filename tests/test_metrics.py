"""Metrics equal scikit-learn's, SciPy's and slow loops; intervals are those of a bootstrap over rows."""

import time

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, recall_score

from distillery import metrics
from distillery.errors import UserError


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a fair and of a better model, and targets of five classes, one of them rare."""
    generator = np.random.default_rng(3)
    target = generator.choice(5, size=400, p=[0.3, 0.3, 0.2, 0.19, 0.01])
    truth = np.eye(5)[target]
    weak = (1.5 * truth + generator.normal(size=(400, 5))).astype(np.float32)
    strong = (2.5 * truth + generator.normal(size=(400, 5))).astype(np.float32)
    return weak, strong, target


def test_scores_equal_scikit_learn(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weak, _, target = rows
    got = metrics.scores(weak, target)
    assert got["accuracy"] == pytest.approx(accuracy_score(target, weak.argmax(1)))
    assert got["macro_f1"] == pytest.approx(f1_score(target, weak.argmax(1), average="macro"))
    assert got["nll"] == pytest.approx(log_loss(target, softmax(weak.astype(np.float64), axis=1)))


def test_scores_leave_out_unlabelled_rows(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weak, _, target = rows
    partly = np.where(np.arange(400) % 3 == 0, -1, target)
    assert metrics.scores(weak, partly) == pytest.approx(metrics.scores(weak[partly >= 0], target[partly >= 0]))


def test_no_label_at_all_is_said() -> None:
    with pytest.raises(UserError, match="no row of the split has a label"):
        metrics.scores(np.zeros((3, 2), np.float32), np.full(3, -1))


def test_scores_cost_little_beside_an_epoch() -> None:
    generator = np.random.default_rng(0)
    logits, target = generator.normal(size=(1000, 10)).astype(np.float32), generator.integers(10, size=1000)
    metrics.scores(logits, target)
    start = time.perf_counter()
    for _ in range(20):
        metrics.scores(logits, target)
    assert (time.perf_counter() - start) / 20 < 0.02


def test_confusion_and_recall_equal_scikit_learn(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weak, _, target = rows
    matrix = metrics.confusion(target, weak.argmax(1), 5)
    assert (matrix == confusion_matrix(target, weak.argmax(1), labels=range(5))).all()
    assert metrics.recall(matrix) == pytest.approx(recall_score(target, weak.argmax(1), average=None))


def test_recall_of_a_class_without_rows_is_none() -> None:
    assert metrics.recall(metrics.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)) == [0.5, 1.0, None]


def test_kl_equals_scipy_and_is_directed(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weak, strong, _ = rows
    slow = rel_entr(softmax(strong.astype(np.float64), axis=1), softmax(weak.astype(np.float64), axis=1))
    assert metrics.kl(strong, weak) == pytest.approx(slow.sum(axis=1).mean())
    assert metrics.kl(weak, weak) == pytest.approx(0.0, abs=1e-12)
    assert metrics.kl(strong, weak) != pytest.approx(metrics.kl(weak, strong))


def test_extreme_logits_stay_finite() -> None:
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=np.float32)
    assert metrics.log_softmax(logits) == pytest.approx(log_softmax(logits.astype(np.float64), axis=1))
    assert np.isfinite(metrics.kl(logits, logits[::-1]))
    assert np.isfinite(metrics.nll(logits, np.array([1, 0])))


def test_calibration_equals_a_slow_loop(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weak, _, target = rows
    probabilities = softmax(weak.astype(np.float64), axis=1)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == target
    error, table = metrics.calibration(weak, target, bins=15)
    slow = 0.0
    for i, found in enumerate(table):
        inside = [j for j in range(400) if i / 15 < confidence[j] <= (i + 1) / 15]
        assert found.rows == len(inside)
        if inside:
            assert found.confidence == pytest.approx(confidence[inside].mean())
            assert found.accuracy == pytest.approx(correct[inside].mean())
            slow += len(inside) / 400 * abs(confidence[inside].mean() - correct[inside].mean())
        else:
            assert found.confidence is None and found.accuracy is None
    assert error == pytest.approx(slow)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_intervals_are_those_of_scipys_bootstrap_over_rows(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray], metric: str
) -> None:
    weak, _, target = rows
    predicted = weak.argmax(1)

    def slow(target: np.ndarray, predicted: np.ndarray) -> float:
        if metric == "accuracy":
            return float(accuracy_score(target, predicted))
        return float(f1_score(target, predicted, average="macro"))

    expected = bootstrap(
        (target, predicted), slow, paired=True, vectorized=False, n_resamples=999, method="percentile", rng=5
    ).confidence_interval
    measure = metrics.accuracy if metric == "accuracy" else metrics.macro_f1
    got = metrics.interval(metrics.Cells.count(target, predicted), measure, resamples=20_000, confidence=0.95, seed=11)
    assert got.value == pytest.approx(slow(target, predicted))
    # 999 draws leave a Monte Carlo error of about a tenth of a standard error in each end.
    assert got.low == pytest.approx(expected.low, abs=0.008)
    assert got.high == pytest.approx(expected.high, abs=0.008)


def test_each_resample_is_the_metric_of_resampled_rows(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """The statistic over cells equals scikit-learn's on the rows that the counts stand for, absent classes too."""
    weak, strong, target = rows
    cells = metrics.Cells.count(target, weak.argmax(1), strong.argmax(1))
    counts = np.random.default_rng(1).multinomial(60, cells.counts / 400, size=50)
    for model in (1, 2):
        fast = metrics.macro_f1(cells, counts, model)
        for value, drawn in zip(fast, counts, strict=True):
            resampled = np.repeat(cells.columns, drawn, axis=1)
            assert value == pytest.approx(f1_score(resampled[0], resampled[model], average="macro"))


def test_intervals_follow_the_seed(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weak, strong, _ = rows

    def measured(seed: int) -> metrics.Interval:
        return metrics.agreement(weak.argmax(1), strong.argmax(1), resamples=500, confidence=0.95, seed=seed)

    assert measured(1) == measured(1)
    assert measured(1) != measured(2)
    assert measured(1).value == (weak.argmax(1) == strong.argmax(1)).mean()


def test_paired_difference_is_that_of_scipys_paired_bootstrap(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    weak, strong, target = rows
    better, worse = strong.argmax(1), weak.argmax(1)
    got = metrics.paired_difference(target, (better, worse), "accuracy", resamples=20_000, confidence=0.95, seed=2)
    gain = (better == target).astype(float) - (worse == target)
    expected = bootstrap((gain,), np.mean, n_resamples=20_000, method="percentile", rng=5).confidence_interval
    assert got.value == pytest.approx(gain.mean())
    assert got.low == pytest.approx(expected.low, abs=0.003)
    assert got.high == pytest.approx(expected.high, abs=0.003)
    assert got.p_value < 0.001 and got.low > 0


def test_pairing_narrows_the_interval_of_alike_models(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weak, _, target = rows
    one = weak.argmax(1)
    other = one.copy()
    other[:4] = target[:4]
    got = metrics.paired_difference(target, (other, one), "accuracy", resamples=2000, confidence=0.95, seed=0)
    alone = metrics.interval(
        metrics.Cells.count(target, one), metrics.accuracy, resamples=2000, confidence=0.95, seed=0
    )
    assert got.high - got.low < (alone.high - alone.low) / 3


def test_equal_models_do_not_differ(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weak, _, target = rows
    got = metrics.paired_difference(
        target, (weak.argmax(1), weak.argmax(1)), "macro_f1", resamples=500, confidence=0.95, seed=0
    )
    assert (got.value, got.low, got.high, got.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_p_values_are_uniform_where_models_are_equally_good() -> None:
    """About one comparison in twenty of equally good models is called different at 5 %."""
    generator = np.random.default_rng(8)
    target = np.zeros(500, dtype=np.int64)
    called = 0
    for seed in range(300):
        first, second = (generator.random(500) < 0.1).astype(np.int64), (generator.random(500) < 0.1).astype(np.int64)
        got = metrics.paired_difference(target, (first, second), "accuracy", resamples=500, confidence=0.95, seed=seed)
        called += got.p_value < 0.05
    assert 3 <= called <= 30


def test_a_million_rows_cost_no_more_than_a_thousand() -> None:
    generator = np.random.default_rng(0)
    target = generator.integers(100, size=1_000_000)
    predicted = np.where(generator.random(1_000_000) < 0.9, target, generator.integers(100, size=1_000_000))
    cells = metrics.Cells.count(target, predicted)
    start = time.perf_counter()
    found = metrics.interval(cells, metrics.macro_f1, resamples=2000, confidence=0.95, seed=0)
    assert time.perf_counter() - start < 10
    assert found.low < found.value < found.high
