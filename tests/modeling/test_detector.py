"""The detector: all variants at odd sizes, mixed precision, activation checkpointing, and state-dict keys."""

import hashlib

import pytest
import torch
from torch import nn

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.modeling.structures import FeatureSpec

VARIANTS = ["single_scale", "single_scale_dc5", "multi_scale", "box_refine", "two_stage"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_odd_sized_image(make_cfg, variant):
    detector = build_detector(make_cfg(variant)).eval()
    with torch.no_grad():
        predictions = detector(torch.randn(1, 3, 97, 131), torch.zeros(1, 97, 131, dtype=torch.bool))
    assert predictions.logits.shape == (3, 1, 7, 5)
    assert predictions.boxes.shape == (3, 1, 7, 4)
    assert predictions.logits.isfinite().all()
    assert predictions.boxes.min() > 0 and predictions.boxes.max() < 1
    if variant == "two_stage":
        tokens = 13 * 17 + 7 * 9 + 4 * 5 + 2 * 3
        assert predictions.proposals[0].shape == (1, tokens, 5)
        assert predictions.proposals[1].shape == (1, tokens, 4)
    else:
        assert predictions.proposals is None


@pytest.mark.parametrize("variant", ["box_refine", "two_stage"])
def test_refinement_detaches_boxes_of_the_previous_layer(make_cfg, shake, variant):
    detector = shake(build_detector(make_cfg(variant)), 0.03)
    predictions = detector(torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool))
    predictions.boxes[2].sum().backward()
    assert detector.decoder.box_heads[2].layers[0].weight.grad.abs().max() > 0
    for index in range(2):
        assert not any(parameter.grad.any() for parameter in detector.decoder.box_heads[index].parameters())


@pytest.mark.parametrize("variant", ["multi_scale", "box_refine"])
def test_only_refinement_passes_boxes_to_the_next_layer(make_cfg, shake, variant):
    """A head whose output is 0 keeps its reference: the box of the previous layer, or the query's point."""
    detector = build_detector(make_cfg(variant))
    shake(detector.decoder.box_heads[0])
    predictions = detector(torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool))
    passed_on = variant == "box_refine"
    assert torch.allclose(predictions.boxes[1], predictions.boxes[0], atol=1e-5) == passed_on
    assert torch.allclose(predictions.boxes[2], predictions.boxes[0], atol=1e-5) == passed_on


def run(detector, criterion, images, mask, targets):
    detector.zero_grad()
    torch.manual_seed(3)  # for dropout
    predictions = detector(images, mask)
    losses = criterion(predictions, targets)
    sum(losses.values()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in detector.named_parameters()}
    return predictions, losses, gradients


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage", "detr", "detr_pre_norm"])
def test_activation_checkpointing_does_not_change_gradients(make_cfg, make_random, shake, variant):
    cfg = make_cfg(variant, DROPOUT=0.1)
    detector = shake(build_detector(cfg), 0.03)
    arguments = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    targets = make_random.targets((2, 3), classes=5)
    _, losses, expected = run(detector, build_criterion(cfg), *arguments, targets)

    cfg.MODEL.DETR.ACTIVATION_CHECKPOINTING = True
    lean = build_detector(cfg)
    lean.load_state_dict(detector.state_dict())
    calls = []
    lean.encoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    _, lean_losses, gradients = run(lean, build_criterion(cfg), *arguments, targets)
    assert len(calls) == 2  # in the forward pass, and again in the backward pass
    assert {name: value.item() for name, value in lean_losses.items()} == pytest.approx(
        {name: value.item() for name, value in losses.items()}
    )
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_autocast_approximates_float32(make_cfg, make_random, variant):
    cfg = make_cfg(variant)
    detector, criterion = build_detector(cfg), build_criterion(cfg)
    arguments = torch.randn(2, 3, 97, 131), torch.zeros(2, 97, 131, dtype=torch.bool)
    targets = make_random.targets((2, 3), classes=5)
    exact, exact_losses, exact_gradients = run(detector, criterion, *arguments, targets)
    with torch.autocast("cpu", torch.bfloat16):
        near, losses, gradients = run(detector, criterion, *arguments, targets)
    assert near.logits.dtype == torch.bfloat16 and near.boxes.dtype == torch.float32
    if variant != "two_stage":  # rounding may select other proposals
        torch.testing.assert_close(near.boxes, exact.boxes, rtol=0, atol=0.02)
        torch.testing.assert_close(near.logits.float(), exact.logits, rtol=0, atol=0.1)
    for name, value in exact_losses.items():
        assert losses[name].dtype == torch.float32
        assert losses[name].item() == pytest.approx(value.item(), rel=0.05), name
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    if variant != "two_stage":
        name = "decoder.class_heads.0.weight"
        cosine = nn.functional.cosine_similarity(gradients[name].flatten(), exact_gradients[name].flatten(), dim=0)
        assert cosine > 0.98


@pytest.mark.parametrize("variant", [*VARIANTS, "encoder_only", "detr", "detr masks", "two_stage masks"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_other_precisions(make_cfg, shake, variant, dtype):
    name, *masks = variant.split()
    options = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8} if masks else {}
    detector = shake(build_detector(make_cfg(name, **options)), 0.02).eval()
    images, mask = torch.randn(2, 3, 97, 131), torch.zeros(2, 97, 131, dtype=torch.bool)
    mask[1, :, 100:] = True
    images = images.masked_fill(mask[:, None], 0.0)
    exact = detector(images, mask)
    found = detector.to(dtype)(images.to(dtype), mask)
    assert found.logits.dtype == dtype
    assert found.boxes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if name not in ("two_stage", "encoder_only") or dtype == torch.float64:  # rounding may select other proposals
        tolerance = {torch.float64: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
        torch.testing.assert_close(found.boxes.float(), exact.boxes, rtol=0, atol=tolerance)
        torch.testing.assert_close(found.logits.float(), exact.logits, rtol=0, atol=4 * tolerance)
    assert exact.masks is None or found.masks.all().isfinite().all()


@torch.no_grad()
def test_reference_points_are_exact_in_16_bits(make_cfg):
    """Reference points are not rounded to bfloat16, which has only 128 values between 0.5 and 1."""
    detector = build_detector(make_cfg(NUM_OBJECT_QUERIES=300)).bfloat16().eval()
    features = detector.backbone(torch.zeros(1, 3, 640, 640).bfloat16())
    tokens = detector.tokenizer(features, torch.zeros(1, 640, 640).bool(), mask_padding=False)
    assert len(detector.queries(tokens.values, tokens).reference[0, :, 0].unique()) == 300
    assert len(tokens.centers()[0, :6400, 0].unique()) == 80


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage", "detr"])
def test_meta_device(make_cfg, variant):
    with torch.device("meta"):
        detector = build_detector(make_cfg(variant)).eval()
        predictions = detector(torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool))
    assert predictions.boxes.shape == (3, 2, 7, 4) and predictions.boxes.is_meta


class Pyramid(nn.Module):
    """Backbone with Detectron2's protocol."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 6, 8, 8), nn.Conv2d(3, 10, 16, 16)

    def output_shape(self):
        return {"p3": FeatureSpec(6, 8), "p4": FeatureSpec(10, 16)}

    def forward(self, images):
        return {"p3": self.fine(images), "p4": self.coarse(images)}


def test_custom_backbone(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.DETR.IN_FEATURES = ["p3", "p4"]
    detector = build_detector(cfg, Pyramid())
    predictions = detector(torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
    assert predictions.boxes.shape == (3, 1, 7, 4)
    predictions.logits.sum().backward()
    assert detector.backbone.fine.weight.grad.abs().max() > 0


# Checkpoints of earlier versions have these keys: their number, and the hash of the list.
STATE_DICT_KEYS = {
    "single_scale": (215, "a1fc954f5213"),
    "single_scale_dc5": (380, "c3745de49066"),
    "multi_scale": (227, "b1f7208e81a6"),
    "box_refine": (243, "8b22cb41a3ef"),
    "two_stage": (255, "f1cb82268ac7"),
    "encoder_only": (161, "c35fa1c33fa8"),
    "own_level": (227, "b1f7208e81a6"),
    "detr": (191, "e2ebefcbad38"),
    "detr_pre_norm": (195, "fda0ef84a9cb"),
    "detr_dc5_plus": (356, "7b506e0c19be"),
    "detr masks": (223, "a1e1761e8b5a"),
    "multi_scale masks": (261, "202335250709"),
    "multi_scale swin": (314, "4e5e1583f9ea"),
    "multi_scale resnet_fpn": (239, "0e91ed15eba1"),
}


@pytest.mark.parametrize("name", STATE_DICT_KEYS)
def test_state_dict_keys_do_not_change(make_cfg, name):
    variant, _, part = name.partition(" ")
    cfg = make_cfg(variant, **({"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8} if part == "masks" else {}))
    if part in ("swin", "resnet_fpn"):
        cfg.MODEL.BACKBONE.NAME = f"build_deformable_detr_{part}_backbone"
    if part == "resnet_fpn":
        cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.DETR.IN_FEATURES = ["res3", "res4", "res5"], ["p3", "p4", "p5", "p6"]
    keys = list(build_detector(cfg).state_dict())
    assert (len(keys), hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12]) == STATE_DICT_KEYS[name]
