"""FPN, Swin and timm backbones, and invalid arguments of all backbones."""

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
from projects_deformable_detr.modeling.resnet import ResNet
from projects_deformable_detr.modeling.swin import SwinBackbone
from projects_deformable_detr.modeling.timm_backbone import TimmBackbone
from projects_deformable_detr.training.optimizer import OptimizerConfig, parameter_groups


def check_protocol(backbone, height=97, width=131):
    """Checks feature maps against ``output_shape()``."""
    specs = backbone.output_shape()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, height, width))
    assert list(features) == list(specs)
    for name, spec in specs.items():
        assert features[name].shape == (2, spec.channels, -(-height // spec.stride), -(-width // spec.stride)), name
    return features


@pytest.mark.parametrize("norm", ["", "GN"])
def test_fpn_levels(norm):
    fpn = BackboneWithFPN(ResNet(18, ("res2", "res3", "res4", "res5")), ["res3", "res4", "res5"], 32, norm)
    assert {name: spec.stride for name, spec in fpn.output_shape().items()} == {
        "p3": 8, "p4": 16, "p5": 32, "p6": 64
    }  # fmt: skip
    features = check_protocol(fpn)
    assert torch.equal(features["p6"], features["p5"][:, :, ::2, ::2])
    assert all(parameter.shape[0] == 32 for parameter in fpn.fpn.parameters())


def test_swin_equals_torchvision():
    original = torchvision.models.swin_t(weights=None).eval()
    backbone = SwinBackbone().eval()
    state = {key: value for key, value in original.state_dict().items() if key.startswith("features.")}
    loaded = backbone.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys and all(key.startswith("norms.") for key in loaded.missing_keys)
    nn.init.normal_(original.norm.weight)
    backbone.norms["res5"].load_state_dict(original.norm.state_dict())
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        expected = original.permute(original.norm(original.features(images)))
        torch.testing.assert_close(backbone(images)["res5"], expected)


def test_swin_of_odd_sizes_and_fewer_stages():
    check_protocol(SwinBackbone())
    model = SwinBackbone(out_features=("res3", "res2"))
    assert len(model.features) == 4 and list(model.output_shape()) == ["res2", "res3"]
    check_protocol(model)


@pytest.mark.parametrize("freeze_at", range(4))
def test_swin_freeze_at(freeze_at):
    model = SwinBackbone(freeze_at=freeze_at).train()
    for name, parameter in model.named_parameters():
        if name.startswith("norms."):
            assert parameter.requires_grad
            continue
        index = int(name.split(".")[1])
        stage = 1 if index == 0 else (index + 1) // 2 + 1  # patch merging belongs to the stage before it
        assert parameter.requires_grad == (stage > freeze_at), name
    expected = {index: 2 * freeze_at - 1 <= index for index in range(8)}
    assert {index: module.training for index, module in enumerate(model.features)} == expected


@pytest.mark.parametrize("variant", ["resnet18", "convnext_atto"])
def test_timm_networks(variant):
    pytest.importorskip("timm", reason="timm is not installed")
    backbone = TimmBackbone(variant, ["res5", "res3"])
    assert list(backbone.output_shape()) == ["res3", "res5"]
    check_protocol(backbone)


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        TimmBackbone("resnet18")


@pytest.mark.parametrize("name", BACKBONES)
def test_detector_trains_with_every_backbone(make_cfg, name):
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
    groups = {group["name"]: len(group["params"]) for group in parameter_groups(detector, OptimizerConfig())}
    assert groups["backbone"] == sum(value.requires_grad for value in detector.backbone.parameters())


@pytest.mark.parametrize(
    ("build", "arguments", "named"),
    [
        (ResNet, {"depth": 20}, "depth must be one of 18, 34, 50, 101, got 20"),
        (ResNet, {"depth": 18, "out_features": ()}, r"out_features must .*got \[\]"),
        (ResNet, {"depth": 18, "out_features": ("res3", "res6")}, "res6"),
        (ResNet, {"depth": 18, "norm": "LN"}, "norm must be .*got 'LN'"),
        (ResNet, {"depth": 50, "res5_dilation": 4}, "res5_dilation must be one of 1, 2, got 4"),
        (ResNet, {"depth": 18, "res5_dilation": 2}, "res5_dilation needs .*`depth` to 50 or 101"),
        (ResNet, {"depth": 18, "deform": (False, False, False, True)}, "deform needs .*`depth` to 50 or 101"),
        (ResNet, {"depth": 50, "deform": (True, True)}, "deform must be a bool for each"),
        (ResNet, {"depth": 50, "deform": [True] * 4, "deform_groups": 0}, "deform_groups must be at least 1"),
        (ResNet, {"depth": 50, "deform": [True] * 4, "deform_groups": 3}, "deform_groups must divide"),
        (SwinBackbone, {"variant": "swin_x"}, "variant must be .*got 'swin_x'"),
        (SwinBackbone, {"out_features": ["p3"]}, "out_features"),
        (TimmBackbone, {"variant": "no_such_network"}, "no_such_network"),
        (TimmBackbone, {"variant": "resnet18", "out_features": ["p3"]}, r"`out_features` \['p3'\]"),
        (TimmBackbone, {"variant": "vit_tiny_patch16_224", "out_features": ["res4"]}, "strides"),
        (TimmBackbone, {"variant": "swin_tiny_patch4_window7_224", "out_features": ["res4"]}, "convolutional"),
    ],
)
def test_invalid_arguments(build, arguments, named):
    if build is TimmBackbone:
        pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(ArgumentError, match=named):
        build(**arguments)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("resnet_fpn", {"FPN.IN_FEATURES": []}, "MODEL.FPN.IN_FEATURES must"),
        ("resnet_fpn", {"FPN.IN_FEATURES": ["res3", "p9"]}, "p9"),
        ("resnet_fpn", {"FPN.NORM": "BN"}, "MODEL.FPN.NORM must be .*got 'BN'"),
        (
            "resnet_fpn",
            {"FPN.NORM": "GN", "FPN.OUT_CHANNELS": 48},
            "MODEL.FPN.OUT_CHANNELS must .* MODEL.FPN.NORM GN, got 48",
        ),
        ("resnet_fpn", {"FPN.FUSE_TYPE": "avg"}, "MODEL.FPN.FUSE_TYPE"),
        ("timm", {"BACKBONE.FREEZE_AT": 2}, "MODEL.BACKBONE.FREEZE_AT must be 0 .*got 2"),
        ("resnet", {"RESNETS.STRIDE_IN_1X1": True}, "MODEL.RESNETS.STRIDE_IN_1X1"),
        ("resnet", {"RESNETS.RES5_DILATION": 4}, "MODEL.RESNETS.RES5_DILATION"),
        ("resnet", {"RESNETS.NUM_GROUPS": 32, "RESNETS.DEPTH": 18}, "MODEL.RESNETS.NUM_GROUPS needs bottleneck"),
        ("swin", {"RESNETS.NUM_GROUPS": 32}, "MODEL.RESNETS.NUM_GROUPS must be 1 for build_deformable_detr_swin"),
        ("unknown", {}, ".*".join(BACKBONES)),
    ],
)
def test_invalid_config_values_are_named(make_cfg, name, changes, named):
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.IN_FEATURES = f"build_deformable_detr_{name}_backbone", ["res3"]
    for path, value in changes.items():
        section, key = path.split(".")
        cfg.MODEL[section][key] = value
    with pytest.raises(UserError, match=named):
        build_backbone(cfg)
