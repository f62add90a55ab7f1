"""The papers' parameter groups and gradient clipping."""

import pytest
import torch
from torch import nn

from projects_deformable_detr import build_detector
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.training.optimizer import build_optimizer, clip_gradients


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
def test_every_trainable_parameter_is_in_its_group_once(make_cfg, variant, wrap):
    cfg = make_cfg(variant, NORM="GN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.SAMPLING_MULTIPLIER = 1e-3, 0.2, 0.3
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    module = wrap(build_detector(cfg))
    optimizer = build_optimizer(cfg, module)
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


def test_the_papers_rates_are_the_default(make_cfg):
    cfg = make_cfg()
    rates = {group["name"]: group["lr"] for group in build_optimizer(cfg, build_detector(cfg)).param_groups}
    assert rates == pytest.approx({"rest": 2e-4, "backbone": 2e-5, "sampling": 2e-5})


def test_a_frozen_backbone_leaves_no_empty_group(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 5
    groups = build_optimizer(cfg, build_detector(cfg)).param_groups
    assert [group["name"] for group in groups] == ["rest", "sampling"]


def test_sgd_and_unknown_optimizers(make_cfg):
    cfg = make_cfg()
    detector = build_detector(cfg)
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.MOMENTUM = "SGD", 0.8
    optimizer = build_optimizer(cfg, detector)
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["momentum"] == 0.8
    cfg.SOLVER.OPTIMIZER = "ADAM"
    with pytest.raises(UserError, match="OPTIMIZER 'ADAM'"):
        build_optimizer(cfg, detector)


def test_sgd_with_nesterov_momentum(make_cfg):
    cfg = make_cfg()
    detector = build_detector(cfg)
    cfg.SOLVER.NESTEROV = True
    with pytest.raises(UserError, match="NESTEROV True needs"):  # of AdamW
        build_optimizer(cfg, detector)
    cfg.SOLVER.OPTIMIZER = "SGD"
    assert build_optimizer(cfg, detector).param_groups[0]["nesterov"]
    cfg.SOLVER.MOMENTUM = 0.0
    with pytest.raises(UserError, match="NESTEROV True needs .*MOMENTUM above 0"):
        build_optimizer(cfg, detector)


@pytest.mark.parametrize(
    ("key", "value"), [("WEIGHT_DECAY_NORM", 1e-4), ("WEIGHT_DECAY_BIAS", 0.0), ("BIAS_LR_FACTOR", 2.0)]
)
def test_keys_that_tell_norms_and_biases_apart_are_refused(make_cfg, key, value):
    cfg = make_cfg()
    detector = build_detector(cfg)
    cfg.SOLVER[key] = value
    with pytest.raises(UserError, match=f"SOLVER.{key} {value}"):
        build_optimizer(cfg, detector)


def test_the_fused_step_is_off_with_mixed_precision(make_cfg):
    cfg = make_cfg()
    detector = build_detector(cfg)
    assert build_optimizer(cfg, detector).param_groups[0]["fused"]
    cfg.SOLVER.AMP.ENABLED = True
    assert not build_optimizer(cfg, detector).param_groups[0]["fused"]


@pytest.fixture
def parameters():
    """Gradients of norms 5 and 12, 13 together, and one parameter without any."""
    found = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    found[0].grad, found[1].grad = torch.tensor([3.0, -4.0]), torch.tensor([12.0])
    return found


def clip(make_cfg, kind, value, norm_type=2.0):
    cfg = make_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = kind, value
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = norm_type
    return cfg


def gradients(parameters):
    return [value for parameter in parameters[:2] for value in parameter.grad.tolist()]


def test_full_model_scales_all_by_their_joint_norm(make_cfg, parameters):
    norm = clip_gradients(clip(make_cfg, "full_model", 1.3), iter(parameters))
    assert norm.item() == pytest.approx(13.0)
    assert gradients(parameters) == pytest.approx([0.3, -0.4, 1.2], rel=1e-4)
    assert parameters[2].grad is None


def test_full_model_leaves_small_gradients_alone(make_cfg, parameters):
    assert clip_gradients(clip(make_cfg, "full_model", 14.0), parameters).item() == pytest.approx(13.0)
    assert gradients(parameters) == [3.0, -4.0, 12.0]


def test_full_model_follows_the_type_of_norm(make_cfg, parameters):
    norm = clip_gradients(clip(make_cfg, "full_model", 6.0, norm_type=float("inf")), parameters)
    assert norm.item() == 12.0
    assert gradients(parameters) == pytest.approx([1.5, -2.0, 6.0], rel=1e-4)


def test_norm_clips_each_parameter(make_cfg, parameters):
    assert clip_gradients(clip(make_cfg, "norm", 6.0), parameters) is None
    assert gradients(parameters) == pytest.approx([3.0, -4.0, 6.0], rel=1e-4)


def test_value_clips_each_number(make_cfg, parameters):
    assert clip_gradients(clip(make_cfg, "value", 3.5), parameters) is None
    assert gradients(parameters) == [3.0, -3.5, 3.5]


def test_the_papers_clipping_is_the_default_and_can_be_switched_off(make_cfg, parameters):
    cfg = make_cfg()
    assert (cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE) == ("full_model", 0.1)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    assert clip_gradients(cfg, parameters) is None
    assert gradients(parameters) == [3.0, -4.0, 12.0]


def test_an_unknown_type_is_named(make_cfg, parameters):
    with pytest.raises(UserError, match="CLIP_TYPE 'total'"):
        clip_gradients(clip(make_cfg, "total", 1.0), parameters)
