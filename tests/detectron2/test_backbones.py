"""Backbones in Detectron2's registry: the project's and Detectron2's."""

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import Boxes, Instances

from projects_deformable_detr.config.model import BACKBONES
from projects_deformable_detr.detectron2_plugin.trainer import Trainer
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling.fpn import BackboneWithFPN
from projects_deformable_detr.modeling.resnet import ResNet

WIDE = {"MODEL__RESNETS__RES2_OUT_CHANNELS": 64, "MODEL__RESNETS__STEM_OUT_CHANNELS": 64}
PYRAMID = {
    "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL__DETR__IN_FEATURES": ["p3", "p4", "p5", "p6"],
    "MODEL__DETR__NUM_FEATURE_LEVELS": 4,
}
D2_SWIN, D2_VIT = "build_deformable_detr_d2_swin_backbone", "build_deformable_detr_d2_vit_backbone"
FROZEN = {"MODEL__RESNETS__NORM": "FrozenBN"}
D2_MVIT, D2_REGNET = "build_deformable_detr_d2_mvit_backbone", "build_deformable_detr_d2_regnet_backbone"


def batch(height=64, width=80):
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 16.0, 40.0, 48.0]]))
    instances.gt_classes = torch.tensor([1])
    return [{"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "instances": instances}]


def train_one_step(cfg):
    """Trains one step and checks that all parameters have gradients and that the backbone has its own group."""
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss = sum(model(batch()).values())
    loss.backward()
    assert loss.isfinite()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []
    optimizer.step()
    backbone = {id(value) for value in model.detector.backbone.parameters()}
    for group in optimizer.param_groups:
        inside = {id(value) in backbone for value in group["params"]}
        assert inside == {group["name"] == "backbone"}
    trained = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("detector.backbone.") for name in trained)
    assert len(model.eval()(batch())[0]["instances"]) == 20
    return model


def test_backbones_are_registered():
    assert all(name in BACKBONE_REGISTRY for name in [*BACKBONES, D2_SWIN, D2_VIT, D2_MVIT, D2_REGNET])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("build_resnet_backbone", WIDE),
        ("build_deformable_detr_resnet_backbone", {"MODEL__DETR__IN_FEATURES": ["res5"]}),
        ("build_resnet_fpn_backbone", {**PYRAMID, **WIDE}),
        ("build_deformable_detr_resnet_fpn_backbone", {**PYRAMID, "MODEL__FPN__NORM": "GN"}),
        ("build_deformable_detr_swin_backbone", {"MODEL__DETR__IN_FEATURES": ["res3", "res4", "res5"]}),
        (D2_SWIN, {"MODEL__DETR__IN_FEATURES": ["p1", "p3"]}),
        (D2_VIT, {**PYRAMID, "MODEL__BACKBONE__VARIANT": "vit_t"}),
        (D2_VIT, {"MODEL__BACKBONE__VARIANT": "vit_t", "MODEL__DETR__IN_FEATURES": ["p3", "p4"]}),
        (D2_MVIT, {"MODEL__BACKBONE__VARIANT": "mvitv2_t", "MODEL__DETR__IN_FEATURES": ["scale3", "scale5"]}),
        (D2_REGNET, {"MODEL__BACKBONE__VARIANT": "regnetx_400mf", "MODEL__DETR__IN_FEATURES": ["s2", "s4"]} | FROZEN),
        (D2_REGNET, {"MODEL__BACKBONE__VARIANT": "regnety_400mf", "MODEL__DETR__IN_FEATURES": ["s4"]} | FROZEN),
    ],
)
def test_training_and_inference(make_cfg, name, options):
    model = train_one_step(make_cfg(MODEL__BACKBONE__NAME=name, **options))
    assert isinstance(model.detector.backbone, Backbone)


def test_deformable_convolution(make_cfg):
    stages = "(False, True, True, True)"
    train_one_step(
        make_cfg(
            MODEL__RESNETS__DEPTH=50, MODEL__RESNETS__DEFORM_ON_PER_STAGE=stages, MODEL__RESNETS__DEFORM_MODULATED=True
        )
    )


@pytest.mark.parametrize("modulated", [False, True])
def test_detectron2_resnet_has_the_same_parameters(make_cfg, modulated):
    # On the CPU, Detectron2's deformable convolution has neither modulation nor a backward pass.
    cfg = make_cfg(
        MODEL__BACKBONE__NAME="build_resnet_backbone",
        MODEL__RESNETS__DEPTH=50,
        MODEL__RESNETS__NORM="FrozenBN",
        MODEL__RESNETS__RES2_OUT_CHANNELS=256,
        MODEL__RESNETS__DEFORM_ON_PER_STAGE="(False, True, True, True)",
        MODEL__RESNETS__DEFORM_MODULATED=modulated,
    )
    if torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cuda"
        train_one_step(cfg)
        return
    original = build_backbone(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_deformable_detr_resnet_backbone"
    backbone = build_backbone(cfg)
    count = [sum(value.numel() for value in each.parameters()) for each in (original, backbone)]
    assert count[0] == count[1]
    if not modulated:
        features = original(torch.randn(1, 3, 64, 80))
        expected = {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()}
        assert {name: (features[name].shape[1], -(-64 // features[name].shape[2])) for name in expected} == expected


def test_fpn_equals_detectron2():
    features = ["res3", "res4", "res5"]
    bottom_up = ResNet(18, features)
    Backbone.register(ResNet)
    backbone = BackboneWithFPN(bottom_up, features, 32)
    original = FPN(bottom_up, features, 32, top_block=LastLevelMaxPool())
    for index in range(3):
        for source, target in ((backbone.fpn.inner_blocks, "lateral"), (backbone.fpn.layer_blocks, "output")):
            getattr(original, f"fpn_{target}{index + 3}").load_state_dict(source[index][0].state_dict())
    assert {name: spec.stride for name, spec in original.output_shape().items()} == {
        name: spec.stride for name, spec in backbone.output_shape().items()
    }
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        found, expected = backbone(images), original(images)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_freeze_at_of_both_swins(make_cfg):
    cfg = make_cfg(MODEL__BACKBONE__FREEZE_AT=3, MODEL__DETR__IN_FEATURES=["p1", "p2", "p3"])
    frozen = []
    for name in (D2_SWIN, "build_deformable_detr_swin_backbone"):
        cfg.MODEL.BACKBONE.NAME = name
        frozen.append(sum(value.numel() for value in build_backbone(cfg).parameters() if not value.requires_grad))
    assert frozen[0] == frozen[1] > 0


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        (
            D2_SWIN,
            {"MODEL__BACKBONE__VARIANT": "vit_b", "MODEL__DETR__IN_FEATURES": ["p3"]},
            "VARIANT .*'vit_b'",
        ),
        (D2_SWIN, {"MODEL__DETR__IN_FEATURES": ["res3"]}, r"IN_FEATURES must .*got \['res3'\]"),
        (D2_VIT, {"MODEL__BACKBONE__VARIANT": "swin_t"}, "VARIANT must .*got 'swin_t'"),
        (D2_VIT, {"MODEL__BACKBONE__FREEZE_AT": 2}, "FREEZE_AT must .*got 2"),
        (D2_VIT, {"MODEL__BACKBONE__VARIANT": "vit_t"}, r"IN_FEATURES must .*got \['res3', 'res4', 'res5'\]"),
        (
            D2_MVIT,
            {"MODEL__BACKBONE__VARIANT": "mvitv2_t", "MODEL__DETR__IN_FEATURES": ["scale3"]},
            "with scale5",
        ),
        (D2_MVIT, {"MODEL__BACKBONE__FREEZE_AT": 1}, "FREEZE_AT must .*got 1"),
        (D2_REGNET, {"MODEL__BACKBONE__VARIANT": "swin_t"}, "VARIANT must .*got 'swin_t'"),
        (D2_SWIN, {"MODEL__PIXEL_MEAN": [0.0], "MODEL__PIXEL_STD": [1.0]}, "3 channels"),
    ],
)
def test_invalid_values_name_their_key(make_cfg, name, options, named):
    with pytest.raises(UserError, match=named):
        build_backbone(make_cfg(MODEL__BACKBONE__NAME=name, **options))
