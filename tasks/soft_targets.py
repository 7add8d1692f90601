"""Asks a teacher about every training and validation row and stores what it says."""

from distillery.saved import digest, load_model
from distillery.soft_targets import write
from tasks.fitting import Splits
from tasks.progress import Bar
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Writes `data/soft_targets/<key>`."""
    splits = Splits.open(stage)
    folder = stage.path(f"models/teachers/{stage.item}")
    rows = len(splits.train) + len(splits.validation)
    with Bar(stage.progress, stage.name, rows) as bar:
        manifest = write(
            stage.output(f"data/soft_targets/{stage.item}"),
            load_model(folder),
            digest(folder),
            {"train": splits.train, "validation": splits.validation},
            partial=stage.state,
            dtype=stage.params.soft_targets.dtype,
            batch_size=stage.params.soft_targets.batch_size,
            advance=bar.advance,
        )
    return {
        "rows": manifest.rows,
        "largest_difference": manifest.fidelity.largest_difference,
        "equal_argmax": manifest.fidelity.equal_argmax,
    }
