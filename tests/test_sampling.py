"""The order of rows and random changes of images."""

import numpy as np
import pytest
import torch

from distillery import sampling
from distillery.augment import augment, shift
from distillery.config import Augmentation
from distillery.sampling import balanced_order, batches, epoch_order
from tests.science import SCHEMA, digits


@pytest.mark.parametrize("row_bytes", [1, 2**30])
def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(row_bytes):
    rows = np.arange(0, 200_000, 2)
    first, again, other = (epoch_order(rows, 1, epoch, row_bytes=row_bytes) for epoch in (0, 0, 1))
    assert np.array_equal(np.sort(first), rows) and np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # No trace of the original order: neighbours in it are far apart.
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < (0.02 if row_bytes == 1 else 1.0)


def test_a_block_shuffle_reads_a_small_part_of_the_file_at_a_time():
    order = epoch_order(np.arange(200_000), 1, 0, row_bytes=2**30)
    window = order[: sampling.BLOCK]
    assert len(np.unique(window // sampling.BLOCK)) <= sampling.BLOCKS_MIXED


def test_a_longer_epoch_goes_over_the_rows_again():
    order = epoch_order(np.arange(10), 0, 0, length=25)
    assert np.bincount(order).min() == 2 and len(order) == 25
    assert np.array_equal(np.sort(order[:10]), np.arange(10))


def test_balanced_rows_show_every_class_equally_often():
    target = np.array([0] * 900 + [1] * 100 + [-1] * 1000)
    order = balanced_order(target, np.arange(2000), 0, 0, length=20_000)
    shares = np.bincount(target[order] + 1) / 20_000
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.02)


def test_batches_leave_no_single_row():
    assert [len(batch) for batch in batches(np.arange(9), 4)] == [4, 5]
    assert [len(batch) for batch in batches(np.arange(10), 4)] == [4, 4, 2]
    assert [len(batch) for batch in batches(np.arange(1), 4)] == [1]


def test_shift_moves_each_image_by_its_own_number_of_pixels():
    images = torch.from_numpy(digits(0, 4).inputs["image"])
    moves = torch.tensor([[0, 0], [2, 0], [0, -1], [-2, 1]])
    for image, (down, right), moved in zip(images, moves.tolist(), shift(images, moves), strict=True):
        expected = torch.zeros_like(image)
        for y in range(8):
            for x in range(8):
                if 0 <= y - down < 8 and 0 <= x - right < 8:
                    expected[:, y, x] = image[:, y - down, x - right]
        assert torch.equal(moved, expected)


def test_augmentation_keeps_type_and_shape_and_follows_its_generator():
    images = torch.from_numpy(digits(0, 200).inputs["image"])
    config = Augmentation(shift=1, flip=True, crop=0.8)
    first, again = (
        augment({"image": images}, SCHEMA, config, torch.Generator().manual_seed(3))["image"] for _ in range(2)
    )
    assert torch.equal(first, again) and first.dtype == torch.uint8 and first.shape == images.shape
    assert not torch.equal(first, images)
    assert abs(first.float().mean() - images.float().mean()) < 12


def test_flip_mirrors_half_of_the_images():
    images = torch.from_numpy(digits(0, 1000).inputs["image"])
    flipped = augment({"image": images}, SCHEMA, Augmentation(flip=True), torch.Generator().manual_seed(0))["image"]
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == images).flatten(1).all(1)).all() and 0.4 < mirrored.float().mean() < 0.6
