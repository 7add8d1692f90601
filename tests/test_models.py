"""Models: shapes, normalisation inside, saving without pickles, the user's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distillery import models
from distillery.columns import Columns
from distillery.config import Cnn, CustomModel, Mlp, Resnet
from distillery.errors import UserError
from distillery.saved import digest, load_model, predict, save_model
from distillery.schema import Input, Schema, Target
from tests.science import SCHEMA, digits

MIXED = Schema(
    inputs={
        "numeric": Input(kind="numeric", shape=(3,), columns=("a", "b", "c")),
        "photo": Input(kind="image", shape=(3, 20, 13), columns=("photo",)),
    },
    targets={"label": Target(kind="classes", names=("no", "yes"))},
)


def mixed_rows(rows: int) -> Columns:
    random = np.random.default_rng(0)
    numeric = random.normal(size=(rows, 3)).astype(np.float32) * [1, 10, 0] + [0, 5, 7]
    photo = random.integers(0, 256, (rows, 3, 20, 13), dtype=np.uint8)
    keys = np.arange(rows, dtype=np.uint64)
    return Columns(
        MIXED, keys, {"label": np.zeros(rows, np.int64)}, {"numeric": numeric.astype(np.float32), "photo": photo}
    )


@pytest.mark.parametrize("config", [Mlp(name="mlp"), Cnn(name="cnn"), Resnet(name="resnet", width=4)])
@pytest.mark.parametrize("schema", [SCHEMA, MIXED])
def test_built_in_models_read_every_kind_of_input(config, schema):
    network = models.build(config, schema, seed=0)
    rows = [torch.zeros(3, *spec.shape, dtype=getattr(torch, spec.dtype)) for spec in schema.inputs.values()]
    assert network(*rows).shape == (3, len(schema.classes))


def test_a_resnet_of_the_paper_has_its_size():
    # He et al. 2016, table 6: ResNet-20 has 0.27M parameters on 3 x 32 x 32 images, 10 classes.
    schema = Schema(
        inputs={"image": Input(kind="image", shape=(3, 32, 32), columns=("image",))},
        targets={"y": Target(kind="classes", names=tuple("0123456789"))},
    )
    network = models.build(Resnet(name="resnet", depth=20, width=16), schema, seed=0)
    assert 265_000 < network.parameter_count < 275_000


def test_normalisation_is_the_statistics_of_the_rows():
    rows = mixed_rows(5000)
    network = models.build(Mlp(name="mlp"), MIXED, seed=0)
    network.fit_normalisation(rows)
    numeric, images = network.inputs
    np.testing.assert_allclose(numeric.mean, rows.inputs["numeric"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(numeric.deviation[:2], rows.inputs["numeric"].std(0)[:2], rtol=1e-5)
    assert numeric.deviation[2] == 1.0, "a constant column is only centred"
    photo = rows.inputs["photo"] / 255
    np.testing.assert_allclose(images.mean.flatten(), photo.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(images.deviation.flatten(), photo.std((0, 2, 3)), rtol=1e-5)


def test_a_saved_model_says_the_same_and_holds_no_pickle(tmp_path: Path):
    network = models.build(Cnn(name="cnn"), SCHEMA, seed=0)
    network.fit_normalisation(digits(0, 500))
    save_model(tmp_path / "m", network, [{"epoch": 1, "loss": 0.5}], {"epochs": 1})
    np.testing.assert_array_equal(predict(load_model(tmp_path / "m"), digits(0, 50)), predict(network, digits(0, 50)))
    assert {file.suffix for file in (tmp_path / "m").iterdir()} == {".json", ".csv", ".safetensors"}
    before = digest(tmp_path / "m")
    network.inputs[0].mean.add_(1)
    save_model(tmp_path / "m", network, [], {})
    assert digest(tmp_path / "m") != before


def test_a_damaged_saved_model_is_told(tmp_path: Path):
    network = models.build(Mlp(name="mlp"), SCHEMA, seed=0)
    save_model(tmp_path / "m", network, [], {})
    (tmp_path / "m/weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="no saved model"):
        load_model(tmp_path / "m")
    with pytest.raises(UserError, match="missing"):
        load_model(tmp_path / "elsewhere")


def own(inputs, outputs, hidden=8):
    """A user's own function, found by name as tests.test_models:own."""
    (shape,) = inputs.values()
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), hidden), nn.Linear(hidden, outputs))


def no_module(inputs, outputs):
    return "model"


def wrong_size(inputs, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs + 1))


def test_a_users_own_model_with_its_checkpoint(tmp_path: Path):
    body = own({"image": (1, 8, 8)}, 10, hidden=5)
    (tmp_path / "custom").mkdir()
    save_file(body.state_dict(), tmp_path / "custom/teacher.safetensors")
    config = CustomModel(
        name="tests.test_models:own", arguments={"hidden": 5}, weights="custom/teacher.safetensors", normalise=False
    )
    network = models.build(config, SCHEMA, seed=0, root=tmp_path)
    network.fit_normalisation(digits(0, 100))
    images = torch.from_numpy(digits(0, 4).inputs["image"])
    torch.testing.assert_close(network(images), body(images.float() / 255))
    save_model(tmp_path / "m", network, [], {})
    np.testing.assert_array_equal(predict(load_model(tmp_path / "m"), digits(0, 9)), predict(network, digits(0, 9)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "tests.nowhere:own"}, "nowhere"),
        ({"name": "tests.test_models:absent"}, "absent"),
        ({"name": "tests.test_models:own", "arguments": {"hiden": 3}}, "hiden"),
        ({"name": "tests.test_models:no_module"}, "must return a torch.nn.Module"),
        ({"name": "tests.test_models:wrong_size"}, r"\(2, 10\)"),
        ({"name": "tests.test_models:own", "weights": "custom/absent.safetensors"}, "missing"),
    ],
)
def test_a_users_mistake_in_a_model_is_told(config, message, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        models.build(CustomModel(**config), SCHEMA, seed=0, root=tmp_path)


def test_a_convolutional_model_without_an_image_is_told():
    schema = MIXED.model_copy(update={"inputs": {"numeric": MIXED.inputs["numeric"]}})
    with pytest.raises(UserError, match="exactly one image"):
        models.build(Cnn(name="cnn"), schema, seed=0)
