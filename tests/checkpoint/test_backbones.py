"""ImageNet weights of torchvision in all backbones that accept them."""

import pytest
import torch
import torchvision

from projects_deformable_detr import build_detector, get_cfg
from projects_deformable_detr.checkpoint import CheckpointError, LoadReport, load_weights

FPN = {"FPN.IN_FEATURES": ["res3", "res4", "res5"], "DETR.IN_FEATURES": ["p3", "p4", "p5", "p6"]}
RESNET, SWIN = "build_deformable_detr_resnet", "build_deformable_detr_swin"
# Backbone, options, torchvision network, and parameters that are missing in its file.
CASES = {
    "resnet": (f"{RESNET}_backbone", {}, "resnet50", ()),
    "resnet with batch norm": (f"{RESNET}_backbone", {"RESNETS.NORM": "BN"}, "resnet50", ()),
    "resnet of fewer stages": (
        f"{RESNET}_backbone",
        {"RESNETS.OUT_FEATURES": ["res3", "res4"], "DETR.IN_FEATURES": ["res3", "res4"]},
        "resnet50",
        (),
    ),
    "deformable": (
        f"{RESNET}_backbone",
        {"RESNETS.DEFORM_ON_PER_STAGE": [False, False, True, True]},
        "resnet50",
        ("offset.weight", "offset.bias"),
    ),
    "pyramid": (f"{RESNET}_fpn_backbone", FPN, "resnet50", ("backbone.fpn.",)),
    "swin": (f"{SWIN}_backbone", {}, "swin_t", (".norms.",)),
    "swin of fewer stages": (
        f"{SWIN}_backbone",
        {"BACKBONE.OUT_FEATURES": ["res3"], "DETR.IN_FEATURES": ["res3"]},
        "swin_t",
        (".norms.",),
    ),
    "swin pyramid": (f"{SWIN}_fpn_backbone", FPN, "swin_t", (".norms.", "backbone.fpn.")),
}


def detector_of(name, options):
    cfg = get_cfg("standalone")
    cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DETR.ENC_LAYERS, cfg.MODEL.DETR.DEC_LAYERS = 3, 1, 1
    cfg.MODEL.BACKBONE.NAME = name
    for key, value in options.items():
        section, leaf = key.split(".")
        cfg.MODEL[section][leaf] = value
    return build_detector(cfg)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder of files with random weights of torchvision networks."""
    folder = tmp_path_factory.mktemp("torchvision")
    for name in ("resnet50", "swin_t"):
        torch.save(torchvision.models.get_model(name, weights=None).state_dict(), folder / f"{name}.pth")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_imagenet_weights_fill_the_backbone(case, files):
    name, options, network, new = CASES[case]
    detector = detector_of(name, options)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    report = load_weights(detector, files / f"{network}.pth")
    assert report == LoadReport(report.format)
    original = torch.load(files / f"{network}.pth", weights_only=True)
    for key, value in detector.state_dict().items():
        source = key.removeprefix("backbone.").removeprefix("bottom_up.")
        if key.startswith("backbone.") and not any(part in key for part in new):
            assert torch.equal(value, original[source]), key
        else:
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(("name", "network"), [(f"{SWIN}_backbone", "resnet50"), (f"{RESNET}_backbone", "swin_t")])
def test_another_network_is_rejected(name, network, files):
    with pytest.raises(CheckpointError, match="does not match the architecture"):
        load_weights(detector_of(name, {}), files / f"{network}.pth")
