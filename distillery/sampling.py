"""In which order training sees its rows; a function of seed and epoch alone, so that a resumed run sees the same."""

import numpy as np
import numpy.typing as npt

from distillery.schema import UNLABELLED

Rows = npt.NDArray[np.int64]
# Rows are shuffled freely while the data fit into memory with ease; beyond that only within a moving part of the
# file, because random access to a disk costs a hundred times a neighbour's.
BLOCK_SHUFFLE_BYTES = 2**30
BLOCK = 1024
BLOCKS_MIXED = 32


def epoch_order(rows: Rows, seed: int, epoch: int, length: int | None = None, row_bytes: int = 0) -> Rows:
    """The rows of one epoch.

    Args:
        rows: (n,) the row numbers that take part.
        seed: of the whole training.
        epoch: from 0.
        length: how many rows the epoch has; beyond n the rows come again, each time in a new order.
        row_bytes: size of one row, which decides between free and block shuffle.

    Returns:
        (length,) row numbers, by default each of `rows` once.
    """
    wanted = len(rows) if length is None else length
    order = _block_shuffle if len(rows) * row_bytes > BLOCK_SHUFFLE_BYTES else _shuffle
    passes = -(-wanted // len(rows))
    return np.concatenate([order(rows, np.random.default_rng([seed, epoch, turn])) for turn in range(passes)])[:wanted]


def balanced_order(target: npt.NDArray[np.int64], rows: Rows, seed: int, epoch: int, length: int | None = None) -> Rows:
    """Rows drawn with replacement so that every class is expected equally often; unlabelled rows keep their share."""
    labels = target[rows]
    labelled = labels != UNLABELLED
    counts = np.bincount(labels[labelled])
    weights = np.ones(len(rows))
    weights[labelled] = labelled.sum() / np.count_nonzero(counts) / counts[labels[labelled]]
    wanted = len(rows) if length is None else length
    return np.random.default_rng([seed, epoch]).choice(rows, wanted, p=weights / weights.sum())


def batches(order: Rows, batch_size: int) -> list[Rows]:
    """Cuts an epoch into batches; a single row left over joins the last batch, since it has no variance."""
    starts = list(range(0, len(order), batch_size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    return [order[start:stop] for start, stop in zip(starts, [*starts[1:], len(order)], strict=True)]


def _shuffle(rows: Rows, random: np.random.Generator) -> Rows:
    return random.permutation(rows)


def _block_shuffle(rows: Rows, random: np.random.Generator) -> Rows:
    """Blocks of neighbours in random order, rows mixed freely within a few blocks at a time."""
    blocks = [rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK)]
    shuffled = [blocks[at] for at in random.permutation(len(blocks))]
    parts = [
        random.permutation(np.concatenate(shuffled[at : at + BLOCKS_MIXED]))
        for at in range(0, len(shuffled), BLOCKS_MIXED)
    ]
    return np.concatenate(parts)
