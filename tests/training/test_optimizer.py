"""Parameter groups, optimizers and gradient clipping."""

import pytest
import torch
from torch import nn

from projects_deformable_detr import build_detector
from projects_deformable_detr.config.training import optimizer_config
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.training import GradientClip, OptimizerConfig, build_optimizer
from projects_deformable_detr.training.optimizer import make_optimizer


class Engine(nn.Module):
    """Both engines hold the network in an attribute ``detector``."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector


def expected_group(name):
    if ".backbone." in f".{name}":
        return "backbone"
    return "sampling" if "sampling_offsets" in name or "reference_points" in name else "rest"


@pytest.mark.parametrize("wrap", [lambda detector: detector, Engine, lambda detector: Engine(Engine(detector))])
@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_every_trainable_parameter_is_in_one_group(make_cfg, variant, wrap):
    cfg = make_cfg(variant, NORM="GN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.SAMPLING_MULTIPLIER = 1e-3, 0.2, 0.3
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    module = wrap(build_detector(cfg))
    optimizer = build_optimizer(module, optimizer_config(cfg))
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 0.05
        assert group["lr"] == pytest.approx({"rest": 1e-3, "backbone": 2e-4, "sampling": 3e-4}[group["name"]])
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group["name"]
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert len(trainable) < len(list(module.parameters()))  # the frozen stages
    assert set(found) == {id(parameter) for parameter in trainable}
    for key, group in found.items():
        assert group == expected_group(names[key]), names[key]
    assert set(found.values()) == {"rest", "backbone", "sampling"}


def test_default_rates_and_a_frozen_backbone(make_cfg):
    cfg = make_cfg()
    groups = build_optimizer(build_detector(cfg), optimizer_config(cfg)).param_groups
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == pytest.approx({"rest": 2e-4, "backbone": 2e-5, "sampling": 2e-5})
    cfg.MODEL.BACKBONE.FREEZE_AT = 5
    groups = build_optimizer(build_detector(cfg), optimizer_config(cfg)).param_groups
    assert [group["name"] for group in groups] == ["rest", "sampling"]


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({"OPTIMIZER": "SGD", "MOMENTUM": 0.8}, torch.optim.SGD, {"momentum": 0.8, "nesterov": False}),
        ({"OPTIMIZER": "SGD", "NESTEROV": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ({}, torch.optim.AdamW, {"fused": True}),
        ({"AMP.ENABLED": True}, torch.optim.AdamW, {"fused": False}),
    ],
)
def test_optimizers_of_a_config(make_cfg, options, kind, expected):
    cfg = make_cfg()
    cfg.merge_from_list([item for key, value in options.items() for item in (f"SOLVER.{key}", value)])
    optimizer = build_optimizer(nn.Linear(2, 2), optimizer_config(cfg))
    assert type(optimizer) is kind
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"OPTIMIZER": "ADAM"}, "SOLVER.OPTIMIZER must be one of 'ADAMW', 'SGD', got 'ADAM'"),
        ({"NESTEROV": True}, "SOLVER.NESTEROV must be False unless the optimizer is SGD"),
        ({"NESTEROV": True, "OPTIMIZER": "SGD", "MOMENTUM": 0.0}, "SOLVER.NESTEROV .* momentum above 0"),
        ({"WEIGHT_DECAY_NORM": 1e-4}, "SOLVER.WEIGHT_DECAY_NORM .* got 0.0001"),
        ({"WEIGHT_DECAY_BIAS": 0.0}, "SOLVER.WEIGHT_DECAY_BIAS .* got 0.0"),
        ({"BIAS_LR_FACTOR": 2.0}, "SOLVER.BIAS_LR_FACTOR .* got 2.0"),
        ({"CLIP_GRADIENTS.CLIP_TYPE": "total"}, "CLIP_TYPE must be one of 'full_model', 'norm', 'value', got 'total'"),
    ],
)
def test_bad_values_of_a_config(make_cfg, options, message):
    cfg = make_cfg()
    for key, value in options.items():
        section, _, name = f"SOLVER.{key}".rpartition(".")
        node = cfg
        for part in section.split("."):
            node = node[part]
        node[name] = value
    with pytest.raises(UserError, match=message):
        optimizer_config(cfg)


def test_plain_arguments_are_checked_too():
    with pytest.raises(ArgumentError, match="name must be one of 'ADAMW', 'SGD'"):
        OptimizerConfig("ADAM")


@pytest.fixture
def parameters():
    """Gradients of norms 5 and 12, 13 together, and one parameter without any."""
    found = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    found[0].grad, found[1].grad = torch.tensor([3.0, -4.0]), torch.tensor([12.0])
    return found


@pytest.mark.parametrize(
    ("clip", "norm", "expected"),
    [
        (GradientClip("full_model", 1.3), 13.0, [0.3, -0.4, 1.2]),
        (GradientClip("full_model", 14.0), 13.0, [3.0, -4.0, 12.0]),  # small gradients are left alone
        (GradientClip("full_model", 6.0, float("inf")), 12.0, [1.5, -2.0, 6.0]),
        (GradientClip("norm", 6.0), None, [3.0, -4.0, 6.0]),
        (GradientClip("value", 3.5), None, [3.0, -3.5, 3.5]),
    ],
)
def test_gradient_clipping(parameters, clip, norm, expected):
    found = clip(iter(parameters))
    assert (found if found is None else found.item()) == (norm if norm is None else pytest.approx(norm))
    assert [value for each in parameters[:2] for value in each.grad.tolist()] == pytest.approx(expected, rel=1e-4)
    assert parameters[2].grad is None


def test_clipping_of_the_paper_is_the_default_and_can_be_disabled(make_cfg):
    cfg = make_cfg()
    assert optimizer_config(cfg).clip == GradientClip("full_model", 0.1, 2.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    assert optimizer_config(cfg).clip is None


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def run_backward(model, scale=1.0):
    (model(torch.linspace(-1, 1, 20).reshape(5, 4)).square().sum() * 10 * scale).backward()


def assert_same_gradients(found, expected):
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("clip", [GradientClip(), None])
def test_clipping_in_the_step(clip):
    found, expected = network(), network()
    for model in (found, expected):
        run_backward(model)
    if clip:
        assert nn.utils.clip_grad_norm_(expected.parameters(), 0.1) > 1  # else this test could not fail
    build_optimizer(found, OptimizerConfig("SGD", clip=clip), clip_in_step=True).step()
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_types_of_detectron2_clip_equally(kind):
    build = pytest.importorskip("detectron2.solver.build", reason="compares with Detectron2's clipping")
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": True, "CLIP_TYPE": kind, "CLIP_VALUE": 0.1})
    found, expected = network(), network()
    for model in (found, expected):
        run_backward(model)
    build_optimizer(found, OptimizerConfig("SGD", clip=GradientClip(kind)), clip_in_step=True).step()
    build.maybe_add_gradient_clipping(cfg, torch.optim.SGD(expected.parameters(), lr=0.1)).step()
    assert_same_gradients(found, expected)


def test_the_scale_of_mixed_precision_does_not_change_the_step():
    config = OptimizerConfig(base_lr=0.1, fused=False)
    plain, scaled = network(), network()
    run_backward(plain)
    build_optimizer(plain, config, clip_in_step=True).step()

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = build_optimizer(scaled, config, clip_in_step=True)
    scaler.scale(torch.ones(()))  # the scaler is created on first use
    run_backward(scaled, scale=1024.0)
    scaler.step(optimizer)
    assert_same_gradients(plain, scaled)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_gradient_scaler_with_the_fused_step_is_an_error():
    weight = nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([{"params": [weight]}], OptimizerConfig(fused=True), clip_in_step=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(weight.sum()).backward()
    with pytest.raises(UserError, match="fused=False"):
        scaler.step(optimizer)
