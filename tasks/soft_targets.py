"""Asks a teacher about every training and validation row of which it has not spoken, and stores what it says."""

from distillery.asking import write
from distillery.reuse import code, earlier, keep
from distillery.saved import digest, load_model
from tasks.folders import STATE
from tasks.progress import Bar
from tasks.stage import Stage, Summary
from tasks.training.fitting import Splits


def run(stage: Stage) -> Summary:
    """Writes `data/soft_targets/<key>`, and keeps it in `.state` too: DVC removes an output before it is made anew."""
    splits = Splits.open(stage, views=True)
    folder = stage.path(f"models/teachers/{stage.item}")
    network = load_model(folder)
    kept = stage.path(f"{STATE}/soft_targets/{stage.item}/{code(network, stage.path('custom'))[:16]}")
    output = stage.output(f"data/soft_targets/{stage.item}")
    rows = splits.shown.shown + len(splits.validation)
    with Bar(stage.progress, stage.name, rows) as bar:
        manifest, asked = write(
            output,
            network,
            digest(folder),
            {"train": splits.shown, "validation": splits.validation},
            partial=stage.state,
            known=earlier(kept),
            dtype=stage.params.soft_targets.dtype,
            asked=stage.params.soft_targets.features.get(stage.item, ()),
            batch_size=stage.params.soft_targets.batch_size,
            advance=bar.advance,
        )
    keep(output, kept)
    return {
        "rows": manifest.rows,
        "asked": asked,
        "largest_difference": manifest.fidelity.largest_difference,
        "equal_argmax": manifest.fidelity.equal_argmax,
    }
