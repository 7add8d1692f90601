"""`python -m flows predict`: a model over a user's rows, from file to file."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distillery.errors import UserError
from flows.registry.files import Files, downloaded, local_files, registered_files, version_of
from tasks import environment
from tasks.params import Params, load
from tasks.progress import Bar, Progress
from tasks.promotion.ledger import CHAMPION

SHIPPED = Path("models") / "student"


def predict(root: Path, rows: Path, output: Path, model: str | None) -> int:
    """Writes the predictions and says which model made them; returns the exit code.

    Args:
        root: the project's folder.
        rows: Parquet, CSV, a folder of either, or a folder of images.
        output: the Parquet file to write.
        model: a name that `flows.registry.files` knows; None: the champion, else the shipped student.

    Raises:
        UserError: where the model, the rows or the place of the output are not in order.
    """
    params = load(root)
    rows, output = rows.absolute(), output.absolute()
    if output.suffix != ".parquet" or not output.parent.is_dir():
        raise UserError(f"--output {output}: name a .parquet file in a folder that exists")
    if output == rows:
        raise UserError("--output is the file that --input reads: name another one")
    environment.enter(root)
    with _chosen(root, params, model) as files:
        with environment.quick_imports():
            from distillery import predicting
            from distillery.blocks import Rows
            from distillery.sources import Options

            loaded = predicting.Model.open(files.onnx, files.description)
        columns, ingest = params.data.columns, params.ingest

        def needed(present: Sequence[str]) -> Sequence[str]:
            roles = predicting.naming(loaded, columns.inputs, columns.key, present)
            return list(dict.fromkeys((*loaded.columns, *roles.inputs, *filter(None, (roles.key,)))))

        options = Options(ingest.image_size, ingest.image_mode, tuple(filter(None, (columns.key,))))
        found = Rows.open(rows, needed, options)
        roles = predicting.naming(loaded, columns.inputs, columns.key, found.names)
        with Progress() as progress, Bar(progress, "predict", found.count) as bar:
            unknown = predicting.predict(loaded, found, roles, output, bar.advance)
    note = f"; {unknown} rows lack an input, so nothing is predicted for them" if unknown else ""
    print(f"{files.title} predicted {found.count} rows into {output}{note}", file=sys.stderr)
    return 0


@contextmanager
def _chosen(root: Path, params: Params, model: str | None) -> Iterator[Files]:
    """The files of the model that is asked for."""
    if model is not None and not model.startswith("models:/"):
        yield local_files(root / model)
        return
    from tasks.tracking.tracker import Tracker

    tracker = Tracker.connect(root, params.registry.experiment)
    name = params.registry.student
    if model is None:
        found = tracker.client.search_registered_models(f"name = '{name}'")
        if not found or CHAMPION not in found[0].aliases:
            print(f"{name} has no champion yet, so the shipped student is taken", file=sys.stderr)
            yield local_files(root / SHIPPED)
            return
    version = version_of(tracker, model or f"models:/{name}@{CHAMPION}")
    with downloaded(root, tracker, version) as folder:
        yield registered_files(folder, version)
