"""Heads, box arithmetic, initial values, and invalid config values."""

import math

import pytest
import torch
from ms_deform_attn import MSDeformAttn

from projects_deformable_detr import build_detector
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling.layers import BoxHead, apply_box_delta, build_class_head, inverse_sigmoid


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("values", [2, 4])
def test_apply_box_delta_adds_before_the_sigmoid(values):
    delta, reference = torch.randn(2, 3, 4), 0.1 + 0.8 * torch.rand(2, 3, values)
    boxes = apply_box_delta(delta, reference)
    for index in range(24):
        place = divmod(index, 4)
        offset = delta.view(6, 4)[place].item()
        if place[1] < values:
            r = reference.view(6, values)[place].item()
            offset += math.log(r / (1 - r))
        assert boxes.view(6, 4)[place].item() == pytest.approx(sigmoid(offset), abs=1e-6)


def test_zero_delta_keeps_the_box():
    reference = 0.05 + 0.9 * torch.rand(1, 5, 4)
    torch.testing.assert_close(apply_box_delta(torch.zeros(1, 5, 4), reference), reference)


def test_references_on_the_border_are_finite():
    reference = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]], requires_grad=True)
    boxes = apply_box_delta(torch.zeros(1, 1, 4), reference)
    boxes.sum().backward()
    assert boxes.isfinite().all() and reference.grad.isfinite().all()
    torch.testing.assert_close(boxes, reference.detach(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inverse_sigmoid_of_half_precision(dtype):
    """1 - 1e-5 is 1 in half precision, and its logit would be infinite."""
    x = torch.tensor([0.0, 0.5, 1.0], dtype=dtype)
    result = inverse_sigmoid(x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, inverse_sigmoid(x.float()))
    assert result.isfinite().all()


def test_initial_outputs_of_heads():
    x = torch.randn(4, 32)
    head = build_class_head(32, 6)
    torch.testing.assert_close(head.bias.sigmoid(), torch.full((6,), 0.01))
    assert head.weight.abs().max() > 0
    boxes = apply_box_delta(BoxHead(32, -2.0)(x)[None], torch.full((1, 4, 2), 0.5))
    torch.testing.assert_close(boxes, torch.tensor([0.5, 0.5, sigmoid(-2), sigmoid(-2)]).expand(1, 4, 4))


def size_biases(detector):
    return [head.layers[-1].bias[2:].tolist() for head in detector.decoder.box_heads]


def test_size_bias_of_heads_that_refine_points(make_cfg):
    assert size_biases(build_detector(make_cfg("multi_scale"))) == [[-2.0] * 2]
    assert size_biases(build_detector(make_cfg("box_refine"))) == [[-2.0] * 2, [0.0] * 2, [0.0] * 2]
    two_stage = build_detector(make_cfg("two_stage"))
    assert size_biases(two_stage) == [[0.0] * 2] * 3
    assert two_stage.queries.box_head.layers[-1].bias.tolist() == [0.0] * 4


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_prior_of_all_class_heads(make_cfg, variant):
    detector = build_detector(make_cfg(variant, NUM_CLASSES=9))
    heads = [*detector.decoder.class_heads]
    if variant == "two_stage":
        heads.append(detector.queries.class_head)
    for head in heads:
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((9,), 0.01))


def test_deformable_attention_keeps_its_initialization(make_cfg):
    """arXiv 2010.04159, A.4: zero weights, eight directions, uniform attention."""
    detector = build_detector(make_cfg(NHEADS=8))
    modules = [module for module in detector.modules() if isinstance(module, MSDeformAttn)]
    assert len(modules) == 5
    bias = MSDeformAttn(64, 4, 8, 2).sampling_offsets.bias
    for module in modules:
        assert not module.sampling_offsets.weight.any()
        assert not module.attention_weights.weight.any() and not module.attention_weights.bias.any()
        assert torch.equal(module.sampling_offsets.bias, bias)
        # Xavier-uniform: within its bound, and filling it.
        bound = math.sqrt(6 / (64 + 64))
        assert 0.9 * bound < module.value_proj.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"TWO_STAGE": True}, "WITH_BOX_REFINE"),
        ({"WITH_BOX_REFINE": True, "DEEP_SUPERVISION": False}, "DEEP_SUPERVISION"),
        ({"NHEADS": 5}, "HIDDEN_DIM must .*NHEADS 5"),
        ({"HIDDEN_DIM": 48}, "HIDDEN_DIM must .*got 48"),
        ({"DEC_LAYERS": 0, "WITH_BOX_REFINE": True}, "DEC_LAYERS must .*got 0"),
        ({"DEC_LAYERS": 0, "CLASS_LOSS": "softmax"}, "CLASS_LOSS must be 'focal'"),
        ({"CLASS_LOSS": "hinge"}, "CLASS_LOSS must .*got 'hinge'"),
        ({"PRE_NORM": True}, "PRE_NORM"),
        ({"POSITION_EMBEDDING": "none"}, "POSITION_EMBEDDING must .*got 'none'"),
        ({"POSITION_EMBEDDING": "learned", "POSITION_EMBEDDING_SIZE": 0}, "POSITION_EMBEDDING_SIZE"),
        ({"META_ARCHITECTURE": "DETR"}, "one feature map"),
        ({"META_ARCHITECTURE": "YOLO"}, "META_ARCHITECTURE must .*got 'YOLO'"),
        ({"NUM_FEATURE_LEVELS": 2}, "NUM_FEATURE_LEVELS must .*got 2"),
        ({"ACTIVATION": "swish"}, "ACTIVATION must .*got 'swish'"),
    ],
)
def test_invalid_values_name_their_key(make_cfg, changes, named):
    with pytest.raises(UserError, match=named):
        build_detector(make_cfg(**changes))


def test_missing_features_are_named(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.DETR.IN_FEATURES = ["res3", "p6"]
    with pytest.raises(UserError, match=r"IN_FEATURES must .*res5.*got \['res3', 'p6'\]"):
        build_detector(cfg)
