"""Backbones beside the plain ResNet: deformable convolution, pyramid, Swin, timm, and their names."""

import sys

import pytest
import torch
import torchvision
from torch import nn

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.config.model import BACKBONES, build_backbone
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.modeling import Targets
from projects_deformable_detr.modeling.fpn import BackboneWithFPN
from projects_deformable_detr.modeling.resnet import DeformableConv2d, ResNet
from projects_deformable_detr.modeling.swin import SwinBackbone
from projects_deformable_detr.modeling.timm_backbone import TimmBackbone
from projects_deformable_detr.training.optimizer import parameter_groups

TINY = {"stem_channels": 16, "res2_channels": 32}


def check_protocol(backbone, height=97, width=131):
    """What is told of the feature maps is what they are."""
    specs = backbone.output_shape()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, height, width))
    assert list(features) == list(specs)
    for name, spec in specs.items():
        assert features[name].shape == (2, spec.channels, -(-height // spec.stride), -(-width // spec.stride)), name
    return features


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_deformable_convolution_begins_as_the_plain_one(stride, dilation):
    plain = nn.Conv2d(8, 8, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    options = {"stride": stride, "dilation": dilation}
    deformable = DeformableConv2d(8, modulated=False, groups=2, **options)
    modulated = DeformableConv2d(8, modulated=True, groups=2, **options)
    for module in (deformable, modulated):
        module.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 8, 13, 10)
    torch.testing.assert_close(deformable(x), plain(x))
    torch.testing.assert_close(modulated(x), 0.5 * plain(x))


def test_offsets_move_the_taps_of_their_group():
    module = DeformableConv2d(4, stride=1, dilation=1, modulated=False, groups=2)
    with torch.no_grad():
        module.offset.bias.view(2, 9, 2)[1, :, 0] = 1.0  # the second group looks one row down
    x = torch.randn(1, 4, 9, 9)
    moved = x.clone()
    moved[:, 2:, :-1] = x[:, 2:, 1:]
    moved[:, 2:, -1] = 0
    expected = nn.functional.conv2d(moved, module.weight, padding=1)
    # The first row of outputs sees row 0, which a plain convolution of the moved input would not.
    torch.testing.assert_close(module(x)[:, :, 1:], expected[:, :, 1:])


def test_deformable_stages_are_those_asked_for_and_all_of_it_learns():
    stages = (False, True, False, True)
    model = ResNet(50, norm="GN", deform=stages, deform_modulated=True, **TINY)
    for index, wanted in enumerate(stages):
        kinds = {type(block.conv2) for block in getattr(model, f"layer{index + 1}")}
        assert kinds == {DeformableConv2d if wanted else nn.Conv2d}
    offsets = [module.offset for module in model.modules() if isinstance(module, DeformableConv2d)]
    assert len(offsets) == 4 + 3 and not any(module.weight.any() or module.bias.any() for module in offsets)
    sum(feature.square().sum() for feature in model(torch.randn(1, 3, 64, 64)).values()).backward()
    assert all(module.weight.grad.any() for module in offsets)
    plain = ResNet(50, norm="GN", **TINY).state_dict()
    own = model.state_dict()
    assert plain.keys() <= own.keys()  # torchvision's weights find their places
    assert all(own[key].shape == value.shape for key, value in plain.items())
    check_protocol(ResNet(50, deform=stages, res5_dilation=2, deform_groups=2, **TINY))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"depth": 18, "deform": (False, False, False, True)}, "deform needs .*`depth` to 50 or 101"),
        ({"deform": (True, True)}, "deform must be a bool for each"),
        ({"deform": (False, False, False, True), "deform_groups": 0}, "deform_groups must be at least 1"),
        ({"deform": (False, False, False, True), "deform_groups": 3}, "deform_groups must divide"),
    ],
)
def test_wrong_deformable_convolutions_are_named(arguments, named):
    with pytest.raises(ArgumentError, match=named):
        ResNet(**{"depth": 50, **TINY, **arguments})


@pytest.mark.parametrize("norm", ["", "GN"])
def test_pyramid_names_levels_by_stride(norm):
    pyramid = BackboneWithFPN(ResNet(18, ("res2", "res3", "res4", "res5")), ["res3", "res4", "res5"], 32, norm)
    assert {name: spec.stride for name, spec in pyramid.output_shape().items()} == {
        "p3": 8, "p4": 16, "p5": 32, "p6": 64
    }  # fmt: skip
    features = check_protocol(pyramid)
    assert torch.equal(features["p6"], features["p5"][:, :, ::2, ::2])
    assert all(parameter.shape[0] == 32 for parameter in pyramid.fpn.parameters())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"IN_FEATURES": []}, "IN_FEATURES"),
        ({"IN_FEATURES": ["res3", "p9"]}, "p9"),
        ({"NORM": "BN"}, "NORM must be .*got 'BN'"),
        ({"NORM": "GN", "OUT_CHANNELS": 48}, "MODEL.FPN.OUT_CHANNELS must .* MODEL.FPN.NORM GN, got 48"),
        ({"FUSE_TYPE": "avg"}, "FUSE_TYPE"),
    ],
)
def test_wrong_pyramids_are_named(make_cfg, changes, named):
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_deformable_detr_resnet_fpn_backbone"
    for key, value in {"IN_FEATURES": ["res3"], **changes}.items():
        cfg.MODEL.FPN[key] = value
    with pytest.raises(UserError, match=named):
        build_backbone(cfg)


def test_swin_equals_torchvision():
    theirs = torchvision.models.swin_t(weights=None).eval()
    ours = SwinBackbone().eval()
    state = {key: value for key, value in theirs.state_dict().items() if key.startswith("features.")}
    loaded = ours.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys and all(key.startswith("norms.") for key in loaded.missing_keys)
    nn.init.normal_(theirs.norm.weight)
    ours.norms["res5"].load_state_dict(theirs.norm.state_dict())
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        expected = theirs.permute(theirs.norm(theirs.features(images)))
        torch.testing.assert_close(ours(images)["res5"], expected)


def test_swin_takes_any_size_and_builds_no_more_than_it_needs():
    check_protocol(SwinBackbone())
    model = SwinBackbone(out_features=("res3", "res2"))
    assert len(model.features) == 4 and list(model.output_shape()) == ["res2", "res3"]
    check_protocol(model)


@pytest.mark.parametrize("freeze_at", range(4))
def test_swin_freezes_the_patches_then_stages(freeze_at):
    model = SwinBackbone(freeze_at=freeze_at).train()
    for name, parameter in model.named_parameters():
        if name.startswith("norms."):
            assert parameter.requires_grad
            continue
        index = int(name.split(".")[1])
        stage = 1 if index == 0 else (index + 1) // 2 + 1  # a merging belongs to the stage before it
        assert parameter.requires_grad == (stage > freeze_at), name
    expected = {index: 2 * freeze_at - 1 <= index for index in range(8)}
    assert {index: module.training for index, module in enumerate(model.features)} == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"variant": "swin_x"}, "variant must be .*got 'swin_x'"), ({"out_features": ["p3"]}, "out_features")],
)
def test_wrong_swins_are_named(arguments, named):
    with pytest.raises(ArgumentError, match=named):
        SwinBackbone(**arguments)


@pytest.mark.parametrize("variant", ["resnet18", "convnext_atto"])
def test_timm_networks_keep_the_protocol(variant):
    pytest.importorskip("timm", reason="timm is not installed")
    backbone = TimmBackbone(variant, ["res5", "res3"])
    assert list(backbone.output_shape()) == ["res3", "res5"]
    check_protocol(backbone)


@pytest.mark.parametrize(
    ("variant", "features", "named"),
    [
        ("no_such_network", ["res3"], "no_such_network"),
        ("resnet18", ["p3"], r"`out_features` \['p3'\]"),
        ("vit_tiny_patch16_224", ["res4"], "strides"),
        ("swin_tiny_patch4_window7_224", ["res4"], "convolutional"),
    ],
)
def test_timm_networks_that_do_not_fit_are_named(variant, features, named):
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(ArgumentError, match=named):
        TimmBackbone(variant, features)


def test_timm_is_optional_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        TimmBackbone("resnet18")


def test_timm_networks_have_no_stages_to_freeze(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_deformable_detr_timm_backbone", 2
    with pytest.raises(UserError, match="FREEZE_AT must be 0 .*got 2"):
        build_backbone(cfg)


def test_unknown_names_are_told_the_known_ones(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    with pytest.raises(UserError) as error:
        build_detector(cfg)
    assert all(name in str(error.value) for name in BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_trains_a_detector_at_the_backbones_rate(make_cfg, name):
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    if "timm" in name:
        pytest.importorskip("timm", reason="timm is not installed")
        cfg.MODEL.BACKBONE.VARIANT = "resnet18"
    if "fpn" in name:
        cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res3", "res4", "res5"], 32
        cfg.MODEL.DETR.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    detector = build_detector(cfg)
    predictions = detector(torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
    targets = [Targets(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.3, 0.4]]))]
    sum(build_criterion(cfg)(predictions, targets).values()).backward()
    assert [key for key, value in detector.named_parameters() if value.requires_grad and value.grad is None] == []
    groups = {group["name"]: len(group["params"]) for group in parameter_groups(detector, 1.0, 0.1, 0.1)}
    assert groups["backbone"] == sum(value.requires_grad for value in detector.backbone.parameters())
