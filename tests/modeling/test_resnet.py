"""ResNet against torchvision's with the same random weights, and deformable convolution."""

import pytest
import torch
import torchvision
from ms_deform_attn import layers
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from projects_deformable_detr.config.model import build_backbone
from projects_deformable_detr.modeling.resnet import DeformableConv2d, ResNet

TINY = {"stem_channels": 16, "res2_channels": 32}
ALL = ("res2", "res3", "res4", "res5")


def make_pair(depth, norm="BN", dilate=False, out_features=ALL):
    original = torchvision.models.get_model(
        f"resnet{depth}", weights=None, **({"replace_stride_with_dilation": [False, False, True]} if dilate else {})
    ).eval()
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    resnet = ResNet(depth, out_features, norm=norm, res5_dilation=2 if dilate else 1).eval()
    resnet.load_state_dict({key: value for key, value in original.state_dict().items() if not key.startswith("fc.")})
    return original, resnet


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
    original, resnet = make_pair(depth, norm, dilate)
    images = torch.randn(1, 3, 67, 96)
    expected = stages(original, images)
    with torch.no_grad():
        found = resnet(images)
    assert list(found) == list(ALL)
    for name in ALL:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    assert resnet.output_shape()["res5"].stride == (16 if dilate else 32)


def test_resnext_equals_torchvision():
    original = torchvision.models.resnext50_32x4d(weights=None).eval()
    resnet = ResNet(50, ALL, norm="BN", groups=32, width_per_group=4).eval()
    resnet.load_state_dict({key: value for key, value in original.state_dict().items() if not key.startswith("fc.")})
    images = torch.randn(1, 3, 64, 70)
    with torch.no_grad():
        found = resnet(images)
    for name, expected in stages(original, images).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)
    deformable = ResNet(50, ALL, groups=32, width_per_group=4, deform=(False, False, False, True), **TINY)
    assert deformable.layer4[0].conv2.groups == 32 and deformable(images)["res5"].isfinite().all()


@pytest.mark.parametrize(("depth", "dilate"), [(18, False), (50, False), (50, True)])
def test_output_shape(depth, dilate):
    model = ResNet(depth, ("res5", "res3"), res5_dilation=2 if dilate else 1, stem_channels=16, res2_channels=16)
    assert list(model.output_shape()) == ["res3", "res5"]
    with torch.no_grad():
        features = model(torch.zeros(2, 3, 97, 131))
    for name, spec in model.output_shape().items():
        size = (-(-97 // spec.stride), -(-131 // spec.stride))
        assert features[name].shape == (2, spec.channels, *size)
    assert {name: spec.channels for name, spec in model.output_shape().items()} == {"res3": 32, "res5": 128}


def test_stages_after_the_last_feature_are_not_built():
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
    assert trainable == (20 if norm == "FrozenBN" else 60)  # convolutions; weight and bias of each norm


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at(freeze_at):
    model = ResNet(18, freeze_at=freeze_at, norm="GN", stem_channels=16, res2_channels=16)
    for name, parameter in model.named_parameters():
        group = 1 if name.startswith(("conv1", "bn1")) else int(name[len("layer")]) + 1
        assert parameter.requires_grad == (group > freeze_at), name


def test_frozen_stages_do_not_update_batch_norm():
    model = ResNet(18, norm="BN", freeze_at=2, stem_channels=16, res2_channels=16).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64))
    moved = {name.split(".")[0] for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert moved == {"layer2", "layer3", "layer4"}


def test_config_keys_reach_the_backbone(make_cfg):
    cfg = make_cfg(DEPTH=50, RES5_DILATION=2, NORM="GN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    model = build_backbone(cfg)
    shape = model.output_shape()
    assert (shape["res5"].stride, shape["res3"].channels) == (16, 64)
    assert isinstance(model.bn1, nn.GroupNorm)
    assert not model.layer1[0].conv1.weight.requires_grad and model.layer2[0].conv1.weight.requires_grad


def test_default_width_is_that_of_the_paper_at_every_depth(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    assert build_backbone(cfg).output_shape()["res5"].channels == 512
    cfg.MODEL.RESNETS.DEPTH = 50
    assert build_backbone(cfg).output_shape()["res5"].channels == 2048


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_deformable_convolution_starts_as_plain_convolution(stride, dilation):
    plain = nn.Conv2d(8, 8, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    options = {"stride": stride, "dilation": dilation}
    deformable = DeformableConv2d(8, modulated=False, groups=2, **options)
    modulated = DeformableConv2d(8, modulated=True, groups=2, **options)
    for module in (deformable, modulated):
        module.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 8, 13, 10)
    torch.testing.assert_close(deformable(x), plain(x))
    torch.testing.assert_close(modulated(x), 0.5 * plain(x))


def test_offsets_belong_to_a_group():
    module = DeformableConv2d(4, stride=1, dilation=1, modulated=False, groups=2)
    with torch.no_grad():
        module.offset.bias.view(2, 9, 2)[1, :, 0] = 1.0  # taps of the second group move one row down
    x = torch.randn(1, 4, 9, 9)
    moved = x.clone()
    moved[:, 2:, :-1] = x[:, 2:, 1:]
    moved[:, 2:, -1] = 0
    expected = nn.functional.conv2d(moved, module.weight, padding=1)
    # The first output row differs: its taps reach row 0, which the moved input lacks.
    torch.testing.assert_close(module(x)[:, :, 1:], expected[:, :, 1:])


def test_deformable_stages():
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
    assert plain.keys() <= own.keys()  # torchvision's weights load
    assert all(own[key].shape == value.shape for key, value in plain.items())
    dilated = ResNet(50, deform=stages, res5_dilation=2, deform_groups=2, **TINY)
    assert dilated(torch.zeros(1, 3, 97, 131))["res5"].shape == (1, 256, 7, 9)


def test_hooks_of_stages_and_layers_run():
    """Grad-CAM and similar tools register hooks on stages, blocks, convolutions and norms."""
    model = ResNet(50, ("res5",)).eval()
    images = torch.randn(1, 3, 96, 96)
    expected = model(images)["res5"]
    modules = [model.bn1, model.layer2, model.layer2[1], model.layer3[0].downsample[0], model.layer4[2].conv3]
    called = []
    for module in modules:
        module.register_forward_hook(lambda module, _inputs, _output: called.append(module))
    torch.testing.assert_close(model(images)["res5"], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert len(called) == len(modules) and set(called) == set(modules)


def test_gradients_have_the_memory_layout_of_parameters():
    """DistributedDataParallel warns about other layouts."""
    model = ResNet(50, ("res5",), freeze_at=0).train()
    model(torch.randn(2, 3, 64, 64))["res5"].square().mean().backward()
    assert all(parameter.grad.stride() == parameter.stride() for parameter in model.parameters())


def test_autocast_returns_the_type_of_convolutions():
    model = ResNet(18, ("res3",)).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)["res3"]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images)["res3"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_padding_mode_of_convolutions():
    original, resnet = make_pair(18)
    original.conv1 = resnet.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False, padding_mode="reflect")
    images = torch.randn(1, 3, 64, 64)
    expected = original.layer1(original.maxpool(original.relu(original.bn1(original.conv1(images)))))
    torch.testing.assert_close(resnet(images)["res2"], expected, rtol=1e-4, atol=1e-4)


def test_one_thread_uses_onednn_for_pointwise_convolutions(monkeypatch):
    """Dilation of 1x1 convolutions selects oneDNN, and changes neither results nor gradients."""
    resnet, images = ResNet(50, ALL, **TINY), torch.randn(1, 3, 256, 256)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found, counts = {}, {}
    for is_faster in (False, True):
        monkeypatch.setattr(layers, "onednn_is_faster", lambda is_faster=is_faster: is_faster)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            outputs = resnet(images)
        sum(output.square().mean() for output in outputs.values()).backward()
        names = {event.key: event.count for event in profile.key_averages()}
        found[is_faster] = outputs["res5"], resnet.layer2[0].conv1.weight.grad.clone()
        counts[is_faster] = names["aten::mkldnn_convolution"]
        resnet.zero_grad()
    torch.set_num_threads(threads)
    assert counts[True] > counts[False] + 10
    torch.testing.assert_close(found[True], found[False], rtol=1e-3, atol=1e-3)
