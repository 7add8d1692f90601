"""ONNX files say what PyTorch says, are the same bytes every time, and int8 stays only where accuracy holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from distillery import models
from distillery.columns import Columns
from distillery.config import Cnn, CustomModel, Mlp, Resnet
from distillery.errors import UserError
from distillery.inference import feed, logits, open_session, predict
from distillery.models import Network
from distillery.onnx_export import check, export, quantise
from distillery.saved import load_model
from distillery.saved import predict as predict_by_pytorch
from distillery.schema import Input, Schema, Target
from distillery.timing import measure
from tasks.results import ExportReport
from tests.science import digits
from tests.small_project import ROOT, copied, run

MIXED = Schema(
    inputs={
        "picture": Input(kind="image", shape=(3, 9, 7), columns=("picture",)),
        "numeric": Input(kind="numeric", shape=(2,), columns=("a", "b")),
    },
    targets={"label": Target(kind="classes", names=("x", "y", "z"))},
)


def mixed_rows(count: int) -> Columns:
    generator = np.random.default_rng(0)
    return Columns(
        MIXED,
        np.arange(count, dtype=np.uint64),
        {"label": generator.integers(3, size=count)},
        {
            "picture": generator.integers(256, size=(count, 3, 9, 7), dtype=np.uint8),
            "numeric": generator.normal(size=(count, 2)).astype(np.float32),
        },
    )


@pytest.mark.parametrize(
    "config",
    [
        Mlp(name="mlp", hidden=(8,), dropout=0.5),
        Cnn(name="cnn", channels=(4, 8)),
        Resnet(name="resnet", depth=8, width=4),
    ],
    ids=lambda config: config.name,
)
def test_onnx_says_what_pytorch_says_for_image_and_numbers(config: Mlp | Cnn | Resnet, tmp_path: Path) -> None:
    rows = mixed_rows(33)
    network = models.build(config, MIXED, seed=1)
    network.fit_normalisation(rows)
    export(network, tmp_path / "model.onnx")
    expected = predict_by_pytorch(network, rows)
    found = check(tmp_path / "model.onnx", expected, rows)
    assert found.largest_difference < 1e-4
    assert found.equal_argmax == 1.0
    session = open_session(tmp_path / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["picture", "numeric"]
    assert [value.type for value in session.get_inputs()] == ["tensor(uint8)", "tensor(float)"]
    assert [value.name for value in session.get_outputs()] == ["logits"]
    for size in (1, 5, 32):
        assert np.allclose(logits(session, feed(rows, slice(0, size))), expected[:size], atol=1e-4)


def test_the_same_weights_give_the_same_bytes_in_another_process_and_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from distillery import models; from distillery.config import Cnn;"
        "from distillery.onnx_export import export; from tests.science import SCHEMA;"
        "export(models.build(Cnn(name='cnn', channels=(4,)), SCHEMA, seed=2), Path(sys.argv[1]))"
    )
    copy = tmp_path / "elsewhere"
    (copy / "tests").mkdir(parents=True)
    (copy / "distillery").symlink_to(ROOT / "distillery")
    for name in ("__init__.py", "science.py"):
        (copy / "tests" / name).write_bytes((ROOT / "tests" / name).read_bytes())
    command = [sys.executable, "-c", script, str(tmp_path / "elsewhere.onnx")]
    done = subprocess.run(
        command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == "", "the exporter's notes reach the user"
    export(models.build(Cnn(name="cnn", channels=(4,)), digits(0, 1).schema, seed=2), tmp_path / "here.onnx")
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "elsewhere.onnx").read_bytes()


def test_no_path_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    export(models.build(Mlp(name="mlp", hidden=(4,)), MIXED, seed=0), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)


class Branching(nn.Module):
    """A user's model whose path depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        flat = image.flatten(1)
        logits: Tensor = self.head(flat) if bool(flat.sum() > 0) else self.head(-flat)
        return logits


def test_a_model_that_cannot_be_traced_is_the_users_to_mend(tmp_path: Path) -> None:
    network = Network(Branching(), digits(0, 2).schema, CustomModel(name="custom.mine:build"))
    with pytest.raises(UserError, match=r"model custom\.mine:build cannot be exported to ONNX"):
        export(network, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_an_input_called_like_the_output_is_refused(tmp_path: Path) -> None:
    schema = MIXED.model_copy(update={"inputs": {"logits": MIXED.inputs["picture"]}})
    with pytest.raises(UserError, match="rename the column"):
        export(models.build(Mlp(name="mlp"), schema, seed=0), tmp_path / "model.onnx")


def test_check_refuses_other_answers_and_numbers_that_are_none(tmp_path: Path) -> None:
    rows = digits(0, 200)
    network = models.build(Mlp(name="mlp"), rows.schema, seed=0)
    export(network, tmp_path / "model.onnx")
    expected = predict_by_pytorch(network, rows)
    with pytest.raises(UserError, match="rows get another class than in PyTorch"):
        check(tmp_path / "model.onnx", expected[:, ::-1].copy(), rows)
    broken = expected.copy()
    broken[3, 3] = np.nan
    with pytest.raises(UserError, match="its training diverged"):
        check(tmp_path / "model.onnx", broken, rows)


def test_a_damaged_onnx_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model\.onnx cannot be loaded by ONNX Runtime"):
        open_session(tmp_path / "model.onnx")


def test_int8_is_smaller_and_close(tmp_path: Path) -> None:
    rows = digits(0, 400)
    network = models.build(Resnet(name="resnet", depth=8, width=8), rows.schema, seed=0)
    network.fit_normalisation(rows)
    export(network, tmp_path / "model.onnx")
    quantise(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", rows)
    assert (tmp_path / "model.int8.onnx").stat().st_size < 0.6 * (tmp_path / "model.onnx").stat().st_size
    ours, theirs = (predict(open_session(tmp_path / f"model{end}.onnx"), rows) for end in ("", ".int8"))
    assert np.abs(ours - theirs).mean() < 0.1 * ours.std()


def test_every_candidate_is_exported_and_checked(tmp_path: Path) -> None:
    root = copied(tmp_path, "export")
    report = ExportReport.read(root / "models/onnx/export.json")
    assert list(report.models) == ["teacher-wide", "baseline", "distilled", "finetuned"]
    test = Columns.open(root / "data/prepared/test")
    for name, model in report.models.items():
        assert model.equal_argmax >= 0.99
        assert model.largest_difference < 1e-3
        assert (model.int8 is None) == (name == "teacher-wide")
        file = root / "models/onnx" / model.file
        assert model.size == file.stat().st_size
        assert predict(open_session(file), test).shape == (len(test), 10)
    network = load_model(root / "models/distilled")
    with torch.inference_mode():
        expected = network(*test.gather(slice(0, 3)))
    assert np.allclose(predict(open_session(root / "models/onnx/distilled.onnx"), test)[:3], expected, atol=1e-4)


def test_int8_that_loses_too_much_is_dropped_and_one_that_holds_is_kept(tmp_path: Path) -> None:
    root = copied(tmp_path, "export")
    params = root / "params.yaml"
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace("export: {}", "export: {int8_max_loss: 0.9}"), encoding="utf-8")
    run(root, "export")
    kept = ExportReport.read(root / "models/onnx/export.json").models["distilled"]
    assert kept.int8 is not None and kept.int8.kept and kept.int8.file == "distilled.int8.onnx"
    assert (root / "models/onnx/distilled.int8.onnx").stat().st_size == kept.int8.size
    assert kept.int8.score is not None
    # The strictest bound drops exactly those that lost anything.
    params.write_text(text.replace("export: {}", "export: {int8_max_loss: 0.0}"), encoding="utf-8")
    run(root, "export")
    for name, model in ExportReport.read(root / "models/onnx/export.json").models.items():
        if model.int8 is None:
            continue
        assert model.int8.score is not None
        assert model.int8.kept == (model.int8.score >= model.score)
        assert (root / f"models/onnx/{name}.int8.onnx").exists() == model.int8.kept
        assert "validation score" in model.int8.reason


def test_int8_can_be_off_and_the_report_repeats(tmp_path: Path) -> None:
    root = copied(tmp_path, "export")
    before = {file.name: file.read_bytes() for file in (root / "models/onnx").iterdir()}
    run(root, "export")
    assert {file.name: file.read_bytes() for file in (root / "models/onnx").iterdir()} == before
    params = root / "params.yaml"
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace("export: {}", "export: {int8: false}"), encoding="utf-8")
    run(root, "export")
    models_told = json.loads((root / "models/onnx/export.json").read_text())["models"]
    assert all(model["int8"] is None for model in models_told.values())
    assert not list((root / "models/onnx").glob("*.int8.onnx"))


def test_a_larger_model_takes_longer(tmp_path: Path) -> None:
    rows = digits(0, 40)
    files = {}
    for name, config in {
        "small": Mlp(name="mlp", hidden=(4,)),
        "large": Resnet(name="resnet", depth=14, width=32),
    }.items():
        files[name] = tmp_path / f"{name}.onnx"
        export(models.build(config, rows.schema, seed=0), files[name])
    times = measure({name: (file, rows) for name, file in files.items()}, seconds=1.0)
    assert times["small"].latency_ms < times["large"].latency_ms
    assert times["small"].throughput > times["large"].throughput
    assert all(timing.latency_ms <= timing.latency_p95_ms for timing in times.values())
    with pytest.raises(UserError, match="the split is empty"):
        measure({name: (file, digits(0, 0)) for name, file in files.items()})
