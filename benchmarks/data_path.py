"""Microseconds to bring one sample from the disk into a batch."""

import statistics
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.digits28 import columns
from benchmarks.interleaved import Result, Work, seconds
from distillery.sampling import batches, epoch_order

BATCH = 128


def measure(folder: Path) -> list[Result]:
    """One shuffled pass over 20,000 images, ours and PyTorch's, in turn."""
    rows = columns(folder / "rows", 20_000)
    everything = np.arange(len(rows))
    (images,) = rows.gather(slice(None))
    dataset = TensorDataset(images, rows.gather_targets(slice(None))["label"])

    def ours() -> None:
        for batch in batches(epoch_order(everything, 0, 0), BATCH):
            rows.gather(batch)
            rows.gather_targets(batch)["label"]

    def loader(workers: int) -> Work:
        source = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)
        return lambda: [torch.is_tensor(images) for images, _ in source]

    times = seconds({"ours": ours, "in process": loader(0), "two workers": loader(2)}, rounds=7)
    micro = {name: statistics.median(values) / len(rows) * 1e6 for name, values in times.items()}
    return [
        Result("data path, microseconds a sample", f"{micro['ours']:.2f}", "<= 2", micro["ours"] <= 2),
        Result("the same by DataLoader, in process", f"{micro['in process']:.1f}", "", True),
        Result("the same by DataLoader, two workers", f"{micro['two workers']:.1f}", "", True),
    ]
