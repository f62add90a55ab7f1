"""The backbone against torchvision's ResNet with the same random weights."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from projects_deformable_detr.config.model import build_backbone
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.modeling.resnet import ResNet

ALL = ("res2", "res3", "res4", "res5")


def theirs_and_ours(depth, norm="BN", dilate=False, out_features=ALL):
    theirs = torchvision.models.get_model(
        f"resnet{depth}", weights=None, **({"replace_stride_with_dilation": [False, False, True]} if dilate else {})
    ).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    ours = ResNet(depth, out_features, norm=norm, res5_dilation=2 if dilate else 1).eval()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    return theirs, ours


@torch.no_grad()
def stages(model, images):
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    found = {}
    for name in ALL:
        x = getattr(model, f"layer{ALL.index(name) + 1}")(x)
        found[name] = x
    return found


@pytest.mark.parametrize(
    ("depth", "norm", "dilate"), [(18, "BN", False), (34, "FrozenBN", False), (50, "FrozenBN", False), (50, "BN", True)]
)
def test_equals_torchvision(depth, norm, dilate):
    theirs, ours = theirs_and_ours(depth, norm, dilate)
    images = torch.randn(1, 3, 67, 96)
    expected = stages(theirs, images)
    with torch.no_grad():
        found = ours(images)
    assert list(found) == list(ALL)
    for name in ALL:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    assert ours.output_shape()["res5"].stride == (16 if dilate else 32)


@pytest.mark.parametrize(("depth", "dilate"), [(18, False), (50, False), (50, True)])
def test_output_shape_tells_channels_and_strides(depth, dilate):
    model = ResNet(depth, ("res5", "res3"), res5_dilation=2 if dilate else 1, stem_channels=16, res2_channels=16)
    assert list(model.output_shape()) == ["res3", "res5"]
    with torch.no_grad():
        features = model(torch.zeros(2, 3, 97, 131))
    for name, spec in model.output_shape().items():
        size = (-(-97 // spec.stride), -(-131 // spec.stride))
        assert features[name].shape == (2, spec.channels, *size)
    assert {name: spec.channels for name, spec in model.output_shape().items()} == {"res3": 32, "res5": 128}


def test_stages_beyond_the_last_feature_are_not_built():
    model = ResNet(18, ("res2", "res3"))
    assert not hasattr(model, "layer3")
    assert list(model(torch.zeros(1, 3, 32, 32))) == ["res2", "res3"]


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("FrozenBN", FrozenBatchNorm2d),
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("GN", nn.GroupNorm),
    ],
)
def test_norms(norm, kind):
    model = ResNet(18, norm=norm, stem_channels=16, res2_channels=16)
    norms = [model.bn1, *(module for module in model.modules() if type(module).__name__.endswith("Norm2d"))]
    norms += [block.bn2 for stage in (model.layer1, model.layer4) for block in stage]
    assert {type(module) for module in norms} == {kind}
    trainable = sum(parameter.requires_grad for parameter in model.parameters())
    assert trainable == (20 if norm == "FrozenBN" else 60)  # convolutions, with weight and bias of each norm


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_the_stem_and_stages(freeze_at):
    model = ResNet(18, freeze_at=freeze_at, norm="GN", stem_channels=16, res2_channels=16)
    for name, parameter in model.named_parameters():
        group = 1 if name.startswith(("conv1", "bn1")) else int(name[len("layer")]) + 1
        assert parameter.requires_grad == (group > freeze_at), name


def test_frozen_stages_keep_their_batch_statistics():
    model = ResNet(18, norm="BN", freeze_at=2, stem_channels=16, res2_channels=16).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64))
    moved = {name.split(".")[0] for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert moved == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"depth": 20}, "depth must be one of 18, 34, 50, 101, got 20"),
        ({"out_features": ()}, r"out_features must .*got \[\]"),
        ({"out_features": ("res3", "res6")}, "res6"),
        ({"norm": "LN"}, "norm must be .*got 'LN'"),
        ({"res5_dilation": 2}, "res5_dilation needs .*`depth` to 50 or 101"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ArgumentError, match=named):
        ResNet(**{"depth": 18, **arguments})


def test_config_keys_reach_the_backbone(make_cfg):
    cfg = make_cfg(DEPTH=50, RES5_DILATION=2, NORM="GN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    model = build_backbone(cfg)
    shape = model.output_shape()
    assert (shape["res5"].stride, shape["res3"].channels) == (16, 64)
    assert isinstance(model.bn1, nn.GroupNorm)
    assert not model.layer1[0].conv1.weight.requires_grad and model.layer2[0].conv1.weight.requires_grad


@pytest.mark.parametrize(("key", "value"), [("STRIDE_IN_1X1", True), ("RES5_DILATION", 4)])
def test_config_values_that_no_backbone_has_are_named(make_cfg, key, value):
    cfg = make_cfg()
    cfg.MODEL.RESNETS[key] = value
    with pytest.raises(UserError, match=key):
        build_backbone(cfg)


def test_detectron2s_default_width_is_the_papers_at_every_depth(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    assert build_backbone(cfg).output_shape()["res5"].channels == 512
    cfg.MODEL.RESNETS.DEPTH = 50
    assert build_backbone(cfg).output_shape()["res5"].channels == 2048
