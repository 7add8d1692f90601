"""New rows like the old ones raise no alarm, changed ones do and by name; figures are those of independent sources."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import scipy.stats
from scipy import ndimage
from sklearn.datasets import load_digits

from distillery import drift, table, two_samples
from distillery.drift import Drift
from distillery.holm import holm
from distillery.schema import Schema
from tests.data_fixtures import tensor

TARGETS = {"label": "classes", "price": "number", "tags": "labels"}
INPUTS = ("age", "flag", "image", "vector")
EVERYTHING = ["input age", "input flag", "input image", "input vector", *(f"target {name}" for name in TARGETS)]


def columns(start: int, stop: int) -> dict[str, Any]:
    """Every kind of input and target, for some of the 1,797 digits in random order."""
    random = np.random.default_rng(0)
    pixels, labels = load_digits(return_X_y=True)
    order = random.permutation(len(labels))
    noise = random.normal(size=(len(labels), 12))
    found = {
        "age": np.where(noise[:, 0] > 1.5, np.nan, noise[:, 1] * 10 + 40),
        "flag": (noise[:, 2] > 0.5).astype(float),
        "image": (pixels[order].reshape(-1, 1, 8, 8) * 255 / 16).round().astype(np.uint8),
        "vector": noise[:, 3:8] * [1, 1, 1, 100, 1e-3],
        "label": labels[order].astype(str),
        "price": np.exp(noise[:, 9]),
        "tags": noise[:, 10:] > 0.3,
    }
    return {name: values[start:stop] for name, values in found.items()}


def build(found: dict[str, Any]) -> tuple[pa.Table, Schema]:
    """As ingest does it."""
    tags = [[name for name, holds in zip("ab", row, strict=True) if holds] for row in found["tags"]]
    raw = found | {"image": tensor(found["image"]), "vector": found["vector"].tolist(), "tags": tags}
    raw["part"] = ["train"] * len(tags)
    return table.build({0: pa.table(raw)}, table.Roles(INPUTS, TARGETS, split="part"), table.Shares(1, 0, 0))


BEFORE, SCHEMA = build(columns(0, 1400))


def measure(batch: pa.Table, **options: Any) -> dict[str, Drift]:
    return {found.what: found for found in drift.measure(BEFORE, batch, SCHEMA, **options)}


def changed(**changes: Callable[[Any], Any]) -> pa.Table:
    """A batch of 300 rows of the same kind, with some columns changed."""
    found = columns(1400, 1700)
    return build(found | {name: change(found[name]) for name, change in changes.items()})[0]


def test_rows_of_the_same_kind_raise_no_alarm() -> None:
    found = measure(changed())
    assert list(found) == EVERYTHING
    assert not any(each.drifted for each in found.values())
    assert max(each.effect for each in found.values()) < 0.05


def test_the_same_rows_show_nothing() -> None:
    for found in measure(BEFORE).values():
        assert found.effect < 0.01 and found.p_value > 0.3 and found.corrected == 1.0


def blurred(images: Any) -> Any:
    return ndimage.gaussian_filter(images.astype(float), (0, 0, 0.5, 0.5)).round().astype(np.uint8)


def noisy(images: Any) -> Any:
    noise = np.random.default_rng(1).normal(0, 20, images.shape)
    return (images + noise).clip(0, 255).round().astype(np.uint8)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "age": lambda age: age + 6,
    "age-spread": lambda age: (age - 40) * 3 + 40,
    "age-missing": lambda age: np.where(np.arange(len(age)) % 4 == 0, np.nan, age),
    "age-unknown": lambda age: age * np.nan,
    "flag": lambda flag: np.where(np.arange(len(flag)) % 2 == 0, 1 - flag, flag),
    "flag-new": lambda flag: np.where(np.arange(len(flag)) % 5 == 0, 2, flag),
    "image-inverted": lambda images: 255 - images,
    "image-brighter": lambda images: images.astype(int).clip(0, 235).astype(np.uint8) + np.uint8(20),
    "image-noisy": noisy,
    "image-blurred": blurred,
    "vector": lambda vector: vector + np.array([0, 0.5, 0, 0, 5e-4]),
    "vector-spread": lambda vector: vector * 1.8,
    "vector-missing": lambda vector: np.where(np.arange(len(vector))[:, None] % 5 == 0, np.nan, vector),
    "label": lambda label: np.where(np.isin(label, ["0", "1", "2"]), "3", label),
    "label-new": lambda label: np.where(np.arange(len(label)) % 5 == 0, "new", label),
    "price": lambda price: price * 1.7,
    "tags": lambda tags: tags | (np.arange(len(tags))[:, None] % 3 == [[0, 9]]),
    "tags-together": lambda tags: np.stack([tags[:, 0], tags[:, 0]], axis=1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_named_and_nothing_else(change: str) -> None:
    name, *_ = change.split("-")
    found = measure(changed(**{name: CHANGES[change]}))
    assert [each.what.split()[1] for each in found.values() if each.drifted] == [name]


def test_classes_that_no_longer_come_change_images_too() -> None:
    found = columns(1400, 1797)
    some = found["label"] > "4"
    drifted = [
        each.what
        for each in measure(build({name: each[some] for name, each in found.items()})[0]).values()
        if each.drifted
    ]
    assert drifted == ["input image", "target label"]


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_few_rows_can_be_compared_and_prove_little(rows: int) -> None:
    found = measure(changed().slice(0, rows))
    assert list(found) == EVERYTHING and not any(each.drifted for each in found.values())


def test_ten_rows_that_are_all_different_are_noticed() -> None:
    found = measure(changed(age=lambda age: age + 1000, image=lambda images: 255 - images).slice(0, 10))
    assert [each.what for each in found.values() if each.drifted] == ["input age", "input image"]


def test_no_row_is_no_drift() -> None:
    assert measure(BEFORE.slice(0, 0)) == {}


def test_targets_without_labels_are_left_out() -> None:
    nothing = {name: pa.nulls(300, BEFORE[f"target.{name}"].type) for name in TARGETS}
    batch = changed()
    for name, column in nothing.items():
        batch = batch.set_column(batch.column_names.index(f"target.{name}"), f"target.{name}", column)
    assert list(measure(batch)) == EVERYTHING[:4]


def test_unlabelled_rows_belong_to_no_class() -> None:
    batch = changed()
    column = batch.column_names.index("target.label")
    known = pa.array(np.arange(len(batch)) % 2 == 0)
    some = batch.set_column(column, "target.label", pc.if_else(known, batch["target.label"], None))
    found, expected = measure(some)["target label"], measure(batch.filter(known))["target label"]
    assert (found.effect, found.p_value) == (expected.effect, expected.p_value)


def test_columns_that_say_nothing_and_numbers_beyond_measure() -> None:
    random = np.random.default_rng(0)
    constant, empty = np.zeros(500), np.full(500, np.nan)
    wide = random.normal(size=500) * 1e30

    def side(some: slice, factor: float) -> tuple[pa.Table, Schema]:
        vectors = np.stack([constant, empty, wide * factor], axis=1)
        raw = {"constant": constant, "empty": empty, "wide": wide * factor, "v": vectors.tolist(), "y": ["x"] * 500}
        raw["image"] = tensor(np.zeros((500, 1, 4, 4), np.uint8))
        raw["part"] = ["train"] * 500
        roles = table.Roles(("constant", "empty", "wide", "v", "image"), {"y": "classes"}, split="part")
        built, schema = table.build({0: pa.table(raw)}, roles, table.Shares(1, 0, 0))
        return built.slice(some.start, some.stop - some.start), schema

    before, schema = side(slice(0, 300), 1)
    same = {each.what: each for each in drift.measure(before, side(slice(300, 500), 1)[0], schema)}
    assert all(each.p_value == 1 for name, each in same.items() if name not in ("input wide", "input v"))
    assert not any(each.drifted for each in same.values())
    other = drift.measure(before, side(slice(300, 500), -3)[0], schema)
    assert [each.what for each in other if each.drifted] == ["input wide", "input v"]


def test_order_of_rows_and_columns_changes_no_figure() -> None:
    batch = changed()
    expected = measure(batch)
    order = np.random.default_rng(0).permutation
    shuffled, others = batch.take(pa.array(order(len(batch)))), BEFORE.take(pa.array(order(len(BEFORE))))
    assert {each.what: each for each in drift.measure(others, shuffled, SCHEMA)} == expected
    backwards = SCHEMA.model_copy(
        update={
            "inputs": {
                name: spec.model_copy(update={"columns": spec.columns[::-1]})
                for name, spec in reversed(SCHEMA.inputs.items())
            }
        }
    )
    assert {each.what: each for each in drift.measure(BEFORE, batch, backwards)} == expected


def test_another_seed_draws_other_rows_and_says_the_same() -> None:
    one, two = measure(changed(), seed=1), measure(changed(), seed=2)
    assert one["input image"].p_value != two["input image"].p_value
    assert [each.drifted for each in one.values()] == [each.drifted for each in two.values()]


def test_large_images_and_many_rows_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    whole = two_samples.classifier

    def watched(rows: Any, batch: int, **how: Any) -> two_samples.Evidence:
        seen.append((rows.shape, batch))
        return whole(rows, batch, **how)

    monkeypatch.setattr(two_samples, "classifier", watched)
    monkeypatch.setattr(drift, "MOST_NUMBERS", 64 * 100)
    monkeypatch.setattr(drift, "MOST_ROWS", 400)
    assert measure(changed(image=lambda images: 255 - images))["input image"].drifted
    assert seen == [((200, 64), 100), ((700, 6), 300), ((700, 3), 300)]


def test_the_level_holds_for_all_tests_together_and_an_effect_can_be_too_small() -> None:
    batch = changed(age=lambda age: age + 3.5)
    found = measure(batch, effect=0.05)
    assert [each.corrected for each in found.values()] == holm([each.p_value for each in found.values()])
    age = found["input age"]
    assert age.drifted and 0.05 < age.effect < 0.1 and 0.001 < age.corrected < 0.01
    assert not measure(batch)["input age"].drifted
    assert not measure(batch, effect=0.05, level=0.001)["input age"].drifted
    assert Drift.model_validate_json(age.model_dump_json()) == age


def test_kolmogorov_smirnov_is_scipys_and_counts_missing_values() -> None:
    random = np.random.default_rng(0)
    before, batch = random.normal(size=400), random.normal(0.4, size=90)
    found, expected = two_samples.kolmogorov_smirnov(before, batch), scipy.stats.ks_2samp(before, batch)
    assert found.p_value == expected.pvalue
    drawn = [scipy.stats.ks_2samp(random.normal(size=400), random.normal(size=90)).statistic for _ in range(300)]
    assert found.effect == pytest.approx(expected.statistic - np.mean(drawn), abs=0.01)
    # Ten above ten others: of all ways to deal them out, two are as extreme.
    apart = two_samples.kolmogorov_smirnov(np.arange(10.0), np.arange(10.0) + 10)
    assert apart.p_value == pytest.approx(2 / math.comb(20, 10))
    gaps = np.where(np.arange(400) < 120, np.nan, before)
    assert two_samples.kolmogorov_smirnov(before, gaps).effect == pytest.approx(0.3 - 0.8687 / math.sqrt(200), abs=1e-4)


def test_chi_squared_is_scipys_where_that_holds_and_fishers_where_not() -> None:
    how = {"draws": 50_000, "seed": 0}
    before, batch = np.array([400, 300, 200, 100]), np.array([70, 80, 30, 20])
    expected = scipy.stats.chi2_contingency([before, batch], correction=False).pvalue
    found = two_samples.chi_squared(before, batch, **how)
    assert found.p_value == pytest.approx(expected, abs=0.003)
    few = two_samples.chi_squared(np.array([40, 3]), np.array([4, 3]), **how)
    assert few.p_value == pytest.approx(scipy.stats.fisher_exact([[40, 3], [4, 3]]).pvalue, abs=0.003)
    # The effect, less what chance shows: no more than the distance of the shares, and little less.
    distance = np.abs(before / 1000 - batch / 200).sum() / 2
    random = np.random.default_rng(0)
    drawn = random.multinomial(1000, before / 1000, 5000) / 1000 - random.multinomial(200, before / 1000, 5000) / 200
    assert found.effect == pytest.approx(distance - np.abs(drawn).sum(axis=1).mean() / 2, abs=0.003)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_the_classifier_finds_the_distance_of_two_gaussians(shift: float) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(6000, 5))
    rows[3000:] += shift / math.sqrt(5)
    found = two_samples.classifier(rows, 3000, draws=99, seed=0)
    assert found.effect == pytest.approx(2 * scipy.stats.norm.cdf(shift / 2) - 1, abs=0.025)
    assert found.p_value == 0.01


@pytest.mark.parametrize("rows", [4, 40])
def test_the_p_value_of_the_classifier_is_exact(rows: int) -> None:
    random = np.random.default_rng(0)
    found = [two_samples.classifier(random.normal(size=(60, 8)), rows, draws=39, seed=at).p_value for at in range(400)]
    for level in (0.05, 0.25, 0.5):
        alarms = sum(value <= level for value in found)
        assert alarms <= scipy.stats.binom.ppf(0.999, len(found), level)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_holm_finds_what_testing_in_turn_finds() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005, 0.5]
    corrected = holm(p_values)
    for level in np.linspace(0.001, 0.999, 500):
        # Holm 1979: smallest first, against level / (m - rank), until the first that is not below.
        rejected = set()
        for rank, at in enumerate(np.argsort(p_values)):
            if p_values[at] > level / (len(p_values) - rank):
                break
            rejected.add(int(at))
        assert {at for at, p in enumerate(corrected) if p <= level} == rejected
    assert holm([]) == []
