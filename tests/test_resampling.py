"""Figures of labels and numbers are scikit-learn's, and their intervals what resampling rows gives."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, mean_absolute_error, r2_score, root_mean_squared_error

from distillery import resampling, scores
from distillery.schema import Schema, Target

RANDOM = np.random.default_rng(0)
DRAWS = {"resamples": 2000, "confidence": 0.95, "seed": 1}
NUMBER = Target(kind="number", mean=50.0, deviation=10.0)
LABELS = Target(kind="labels", names=("a", "b", "c", "never"))


def numbers(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    truth = RANDOM.normal(1e6, 10, rows).astype(np.float32)
    return (truth + RANDOM.normal(0, 5, rows)).astype(np.float32)[:, None], truth


def labels(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    truth = (RANDOM.random((rows, 4)) < [0.5, 0.2, 0.8, 0.0]).astype(np.float32)
    return (truth * 2 - 1 + RANDOM.normal(0, 1.2, truth.shape) - [0, 0, 0, 9]).astype(np.float32), truth


def test_figures_of_a_number_are_those_of_scikit_learn() -> None:
    said, truth = numbers()
    found = {name: figure.observed for name, figure in resampling.figures(said, truth, NUMBER).items()}
    assert found["r2"] == pytest.approx(r2_score(truth.astype(float), said[:, 0].astype(float)), abs=1e-6)
    assert found["rmse"] == pytest.approx(
        root_mean_squared_error(truth.astype(float), said[:, 0].astype(float)), rel=1e-6
    )
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, said[:, 0]), rel=1e-5)
    epoch = scores.of_target(said, truth, NUMBER)
    assert {name: epoch[name] for name in found} == pytest.approx(found, rel=1e-5)
    assert epoch["nll"] == pytest.approx(found["rmse"] ** 2 / 200, rel=1e-5)


def test_figures_of_labels_are_those_of_scikit_learn() -> None:
    said, truth = labels()
    found = {name: figure.observed for name, figure in resampling.figures(said, truth, LABELS).items()}
    assert found["micro_f1"] == pytest.approx(f1_score(truth, said > 0, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(truth[:, :3], said[:, :3] > 0, average="macro"))
    epoch = scores.of_target(said, truth, LABELS)
    assert {name: epoch[name] for name in found} == pytest.approx(found)


def test_unknown_rows_count_for_nothing() -> None:
    for (said, truth), spec in ((numbers(), NUMBER), (labels(), LABELS)):
        hidden = truth.copy()
        hidden[::2] = np.nan
        for name, figure in resampling.figures(said, hidden, spec).items():
            assert figure.observed == pytest.approx(resampling.figures(said[1::2], truth[1::2], spec)[name].observed)


def test_an_interval_is_that_of_rows_drawn_one_by_one() -> None:
    said, truth = numbers()
    found = resampling.interval(resampling.figures(said, truth, NUMBER)["rmse"], **DRAWS)
    errors = np.square(said[:, 0].astype(float) - truth)
    drawn = [np.sqrt(RANDOM.choice(errors, len(errors)).mean()) for _ in range(2000)]
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), rel=0.02)


@pytest.mark.parametrize("is_sorted", [False, True])
def test_many_rows_cost_no_more_and_say_the_same(is_sorted: bool) -> None:
    said, truth = numbers(50_000)
    if is_sorted:
        order = np.argsort(np.abs(said[:, 0] - truth))
        said, truth = said[order], truth[order]
    figure = resampling.figures(said, truth, NUMBER)["mae"]
    found = resampling.interval(figure, **DRAWS)
    error = np.abs(said[:, 0] - truth)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error.std() / np.sqrt(len(error)), rel=0.1)


def test_a_paired_difference_knows_that_rows_are_shared() -> None:
    said, truth = numbers()
    figure = resampling.figures(said, truth, NUMBER)["r2"]
    better = resampling.figures((said + truth[:, None]) / 2, truth, NUMBER)["r2"]
    found = resampling.difference(better, figure, **DRAWS)
    assert found.value == pytest.approx(better.observed - figure.observed)
    assert found.low > 0 and found.p_value < 0.01
    same = resampling.difference(figure, figure, **DRAWS)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_the_score_of_several_targets_is_the_mean_of_their_main_figures() -> None:
    (said, truth), (hot_said, hot) = numbers(), labels()
    schema = Schema(inputs={}, targets={"n": NUMBER, "l": LABELS})
    outputs = np.concatenate([said, hot_said], axis=1)
    found = resampling.main(outputs, {"n": truth, "l": hot}, schema)
    expected = scores.scores(outputs, {"n": truth, "l": hot}, schema)
    assert found.observed == pytest.approx(expected["score"], abs=1e-6)
    assert expected["score"] == pytest.approx((expected["n.r2"] + expected["l.micro_f1"]) / 2)
