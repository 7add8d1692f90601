"""Stored features and views through the real stages: who is read, who is run, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from distillery import models
from distillery.asking import write
from distillery.config import Mlp
from distillery.errors import UserError
from distillery.features import Capture
from distillery.saved import digest
from distillery.soft_targets import SoftTargets
from tasks.params import parse
from tests.science import SCHEMA, digits
from tests.small_project import PARAMS, copied, run

HINTS = [{"name": "kd", "weight": 0.5}, {"name": "hints", "weight": 0.1}]
PARTS = {"train": digits(0, 500), "validation": digits(500, 600)}


def document(**changes: dict) -> dict:
    whole = yaml.safe_load(PARAMS)
    for section, values in changes.items():
        whole[section] |= values
    return whole


def project(folder: Path, **changes: dict) -> Path:
    copied(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(document(**changes)))
    return folder


def test_stored_features_are_those_of_the_layer_and_resume(tmp_path: Path):
    network = models.build(Mlp(name="mlp", hidden=(12, 8)), SCHEMA, seed=0)

    def interrupt(rows: int) -> None:
        if rows:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write(tmp_path / "a", network, "t", PARTS, partial=tmp_path / "p", asked="stages", advance=interrupt)
    told: list[int] = []
    write(tmp_path / "a", network, "t", PARTS, partial=tmp_path / "p", asked="stages", advance=told.append)
    assert told[0] == 500  # what the killed call had finished
    store = SoftTargets.open(tmp_path / "a", "t", list(PARTS.values()), "stages")
    assert len(store.features) == 2
    with Capture(network, list(store.features)) as capture:
        network(*PARTS["train"].gather(slice(None)))
        for layer, exact in capture.features.items():
            np.testing.assert_allclose(store.features[layer][:500], exact.detach().numpy(), rtol=2**-10, atol=1e-6)
            described = store.manifest.features[layer]
            assert described.largest_difference <= 2**-11 * described.largest_value
    with pytest.raises(UserError, match=r"features stages, not none .* soft_targets@a --force"):
        SoftTargets.open(tmp_path / "a", asked=())
    file = tmp_path / "a" / described.file
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"feature-1.npy was changed"):
        SoftTargets.open(tmp_path / "a")


def test_a_wrong_layer_lists_the_right_ones(tmp_path: Path):
    network = models.build(Mlp(name="mlp"), SCHEMA, seed=0)
    with pytest.raises(UserError, match=r"no layer 'hiden\.0'; did you mean hidden\.0"):
        write(tmp_path / "a", network, "t", PARTS, partial=tmp_path / "p", asked=("hiden.0",))


def test_stored_features_teach_what_the_live_teacher_teaches(tmp_path: Path, capsys):
    root = project(tmp_path / "a", distill={"objectives": HINTS})
    live = run(root, "distill")
    assert "wide is run in every step" in capsys.readouterr().err
    (root / "params.yaml").write_text(
        yaml.safe_dump(
            document(distill={"objectives": HINTS}, soft_targets={"features": {"wide": "stages"}, "dtype": "float32"})
        )
    )
    with pytest.raises(UserError, match=r"was asked for the features none, not stages"):
        run(root, "distill")
    run(root, "soft_targets@wide")
    stored = run(root, "distill")
    said = capsys.readouterr().err
    assert "wide is read from disk with" in said and "MiB" in said and "run in every step it would take" in said
    assert stored["best_score"] == pytest.approx(live["best_score"], abs=0.01)


def test_views_go_through_all_stages(tmp_path: Path):
    views = {"views": 2, "augment": {"shift": 1}, "features": {"wide": "stages"}}
    root = project(tmp_path / "a", soft_targets=views, distill={"objectives": HINTS})
    plain = digest(root / "models/baseline")
    with pytest.raises(UserError, match=r"holds no views, not 2 views"):
        run(root, "distill")
    for stage in ("soft_targets@wide", "validate_soft_targets@wide", "train_baseline", "distill"):
        run(root, stage)
    manifest = json.loads((root / "data/soft_targets/wide/manifest.json").read_text())
    assert manifest["views"]["count"] == 2 and manifest["parts"]["train"] % 2 == 0
    # The baseline sees the same views, so that the comparison is fair: equal steps and equal images.
    assert digest(root / "models/baseline") != plain
    steps = {
        name: json.loads((root / f"models/{name}/training.json").read_text()) for name in ("baseline", "distilled")
    }
    assert steps["baseline"]["steps"] == steps["distilled"]["steps"]
    shutil.rmtree(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"soft_targets": {"views": 2}}, "soft_targets: views without augment"),
        ({"soft_targets": {"augment": {"flip": True}}}, "soft_targets: augment is what happens in views"),
        (
            {
                "soft_targets": {"views": 2, "augment": {"shift": 1}},
                "distill": {"training": {"augment": {"shift": 1}}},
            },
            "distill.training.augment changes what soft_targets.views shows",
        ),
        ({"soft_targets": {"features": {"other": "stages"}}}, "soft_targets.features: 'other' is not among teachers"),
        ({"soft_targets": {"features": {"wide": []}}}, "soft_targets.features.wide"),
        (
            {
                "soft_targets": {"dtype": "float16"},
                "data": {"columns": {"inputs": ["image"], "target": {"size": "number"}}},
                "distill": {"objectives": [{"name": "mse_teacher"}]},
            },
            "soft_targets.dtype: float16 ends at 65,504, and size is a number",
        ),
    ],
)
def test_what_does_not_go_together_is_told_when_params_are_read(changes, message):
    with pytest.raises(UserError, match=message):
        parse(document(**changes))


def test_numbers_are_stored_as_float32(tmp_path: Path):
    schema = SCHEMA.model_copy(
        update={"targets": {"size": SCHEMA.targets["label"].model_copy(update={"kind": "number", "names": ()})}}
    )
    network = models.build(Mlp(name="mlp"), schema, seed=0)
    manifest, _ = write(tmp_path / "a", network, "t", PARTS, partial=tmp_path / "p")
    assert manifest.dtype == "float32"
    network = models.build(Mlp(name="mlp"), SCHEMA, seed=0)
    manifest, _ = write(tmp_path / "b", network, "t", PARTS, partial=tmp_path / "q")
    assert manifest.dtype == "float16"


def test_augment_without_images_is_told_by_its_key(tmp_path: Path):
    from tests.data_fixtures import project as table_project
    from tests.data_fixtures import rows, write_table

    root = tmp_path
    write_table(table_project(root), rows())
    for stage in ("ingest", "validate", "prepare", "snapshot"):
        run(root, stage)
    params = yaml.safe_load((root / "params.yaml").read_text())
    (key,) = params["teachers"]
    params["teachers"][key]["training"] = {"epochs": 1, "augment": {"shift": 1}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match=rf"teachers\.{key}\.training\.augment changes images, and the data hold none"):
        run(root, f"train_teacher@{key}")
