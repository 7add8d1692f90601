"""Activations by module path: which layers, their shapes, gradients, wrappers, mistakes."""

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from distillery import models
from distillery.config import Cnn, CustomModel, Mlp, Resnet
from distillery.errors import UserError
from distillery.features import Capture, check_layers, default_layers, feature_shapes, pair
from distillery.models import Network
from tests.science import SCHEMA, digits

IMAGES = torch.from_numpy(digits(0, 4).inputs["image"])


class Own(nn.Module):
    """A user's model with traps: an activation in place, a module used twice, one never used, one with two results."""

    def __init__(self, stages: object) -> None:
        super().__init__()
        if stages is not None:
            self.stages = stages
        self.first = nn.Linear(64, 8)
        self.relu = nn.ReLU(inplace=True)
        self.again = nn.Linear(8, 8)
        self.idle = nn.Linear(8, 8)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.first(image.flatten(1)))
        inner = self.again(self.again(inner))
        return self.head(self.recurrent(inner[:, None])[0][:, 0])


def own(inputs, outputs, stages=None):
    return Own(stages)


def network(config=None, **arguments) -> Network:
    config = config or CustomModel(name="tests.test_features:own", arguments=arguments)
    return models.build(config, SCHEMA, seed=0).eval()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Cnn(name="cnn", channels=(4, 8)), {"trunk.0": (4, 4, 4), "trunk.1": (8, 2, 2)}),
        (
            Resnet(name="resnet", depth=14, width=4),
            {"trunk.stage1": (4, 8, 8), "trunk.stage2": (8, 4, 4), "trunk.stage3": (16, 2, 2)},
        ),
        (Mlp(name="mlp", hidden=(7, 5), dropout=0.1), {"hidden.1": (7,), "hidden.4": (5,)}),
    ],
)
def test_built_in_models_tell_the_last_module_of_each_stage(config, expected):
    model = network(config)
    assert feature_shapes(model, default_layers(model)) == expected


def test_a_users_model_may_tell_its_stages():
    assert default_layers(network(stages=("relu", "again"))) == ("relu", "again")
    assert default_layers(network(stages=["again"])) == ("again",)
    with pytest.raises(UserError, match=r"name layers, or give its body an attribute `stages`.*first, relu, again"):
        default_layers(network())
    with pytest.raises(UserError, match="must be a tuple of module paths"):
        default_layers(network(stages="relu"))
    with pytest.raises(UserError, match="no layer 'rellu'; did you mean relu"):
        default_layers(network(stages=("rellu",)))
    with pytest.raises(UserError, match="no stages"):
        default_layers(network(Mlp(name="mlp", hidden=())))


def test_default_layers_are_paired_from_the_deepest():
    assert pair(["a", "b"], ["x", "y", "z"]) == (("a", "b"), ("y", "z"))
    assert pair(["a", "b", "c"], ["x"]) == (("c",), ("x",))
    assert pair([], ["x"]) == ((), ())


def test_a_wrong_name_lists_the_right_ones():
    model = network(Resnet(name="resnet", width=4))
    check_layers(model, ["trunk.stage2", "trunk.stage1.0.activation", "head"])
    with pytest.raises(
        UserError, match=r"no layer 'trunk\.stage4'; did you mean trunk\.stage\d.*It has: trunk, trunk\.stem"
    ):
        check_layers(model, ["trunk.stage4"])
    with pytest.raises(UserError, match=r"no layer 'xyz'\. It has"):
        check_layers(model, ["xyz"])
    with pytest.raises(UserError, match="no layer"):
        Capture(model, ["body.trunk"])


def test_captured_is_what_the_module_put_out_with_its_gradient():
    model = network(Cnn(name="cnn", channels=(4, 8)))
    with Capture(model, default_layers(model)) as capture:
        logits = model(IMAGES)
        features = capture.features
    assert list(features) == ["trunk.0", "trunk.1"]
    torch.testing.assert_close(model.body.head(features["trunk.1"].mean((2, 3))), logits)
    features["trunk.0"].square().sum().backward()
    assert model.body.trunk[0][0].weight.grad.abs().sum() > 0
    assert model.body.trunk[1][0].weight.grad is None


def test_the_latest_pass_counts_and_a_pass_that_fails_leaves_nothing():
    model = network(Cnn(name="cnn", channels=(4,)))
    with Capture(model, ["trunk.0"]) as capture:
        model(IMAGES[:3])
        first = capture.features["trunk.0"]
        model(IMAGES[:2])
        assert len(first) == 3 and len(capture.features["trunk.0"]) == 2
        torch.testing.assert_close(capture.features["trunk.0"], first[:2])
        with pytest.raises(RuntimeError):
            model(IMAGES[:, :, :0])
        with pytest.raises(UserError, match="did not run"):
            capture.features  # noqa: B018


def test_hooks_are_gone_afterwards_also_after_an_error():
    model = network(Cnn(name="cnn", channels=(4,)))
    with pytest.raises(ValueError, match="stop"), Capture(model, ["trunk.0"]) as capture:
        raise ValueError("stop")
    model(IMAGES)
    assert not model._forward_pre_hooks and not model.body.trunk[0]._forward_hooks
    with pytest.raises(UserError, match="did not run"):
        capture.features  # noqa: B018


def test_shapes_are_found_without_a_trace():
    model = network(Cnn(name="cnn", channels=(4,))).train()
    model.body.trunk[0][1].eval()  # frozen on purpose
    before = {name: value.clone() for name, value in model.state_dict().items()}
    feature_shapes(model, ["trunk.0", "head"])
    assert model.training and model.body.trunk.training and not model.body.trunk[0][1].training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_traps_of_users_models_are_told():
    model = network()
    with pytest.raises(UserError, match="changed in place by a later one"):
        feature_shapes(model, ["first"])
    with pytest.raises(UserError, match="idle did not run"):
        feature_shapes(model, ["idle"])
    with pytest.raises(UserError, match="puts out tuple"):
        feature_shapes(model, ["recurrent"])


def test_a_module_that_runs_twice_is_captured_at_its_last_time():
    model = network()
    with Capture(model, ["again", "relu"]) as capture:
        model(IMAGES)
        features = capture.features
    torch.testing.assert_close(features["again"], model.body.again(model.body.again(features["relu"])))


def test_a_teacher_in_inference_mode_can_be_captured():
    model = network(Cnn(name="cnn", channels=(4,)))
    with Capture(model, ["trunk.0"]) as capture, torch.inference_mode():
        model(IMAGES)
        assert capture.features["trunk.0"].shape == (4, 4, 4, 4)


def test_hooks_fire_under_accelerate_and_narrow_features_are_widened():
    model = network(Cnn(name="cnn", channels=(4,))).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        with Capture(model, ["trunk.0"]) as capture:
            prepared = accelerator.prepare(model)
            logits = prepared(IMAGES)
            feature = capture.features["trunk.0"]
        assert feature.dtype == logits.dtype == torch.float32
        feature.sum().backward()
        assert model.body.trunk[0][0].weight.grad is not None
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_hooks_fire_under_data_parallel_and_gradients_are_the_same(tmp_path):
    plain, parallel = (network(Cnn(name="cnn", channels=(4,))).train() for _ in range(2))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(parallel)
        for model, call in ((plain, plain), (parallel, wrapped)):
            with Capture(model, ["trunk.0"]) as capture:
                logits = call(IMAGES)
                (capture.features["trunk.0"].square().mean() + logits.square().mean()).backward()
    finally:
        dist.destroy_process_group()
    for one, other in zip(plain.parameters(), parallel.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
