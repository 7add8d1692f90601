"""Asks a teacher about every training and validation row and stores what it says."""

from distillery.saved import digest, load_model
from distillery.soft_targets import write
from tasks.fitting import Splits
from tasks.progress import Bar
from tasks.stage import Stage, Summary


def run(stage: Stage) -> Summary:
    """Writes `data/soft_targets/<key>`."""
    splits = Splits.open(stage, views=True)
    folder = stage.path(f"models/teachers/{stage.item}")
    rows = splits.shown.shown + len(splits.validation)
    with Bar(stage.progress, stage.name, rows) as bar:
        manifest = write(
            stage.output(f"data/soft_targets/{stage.item}"),
            load_model(folder),
            digest(folder),
            {"train": splits.shown, "validation": splits.validation},
            partial=stage.state,
            dtype=stage.params.soft_targets.dtype,
            asked=stage.params.soft_targets.features.get(stage.item, ()),
            batch_size=stage.params.soft_targets.batch_size,
            advance=bar.advance,
        )
    return {
        "rows": manifest.rows,
        "largest_difference": manifest.fidelity.largest_difference,
        "equal_argmax": manifest.fidelity.equal_argmax,
    }
