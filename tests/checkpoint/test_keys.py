"""Recognition of a file by its keys."""

import pytest
import torchvision

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import recognise, to_ours


@pytest.mark.parametrize("variant", ["multi_scale", "encoder_only", "detr"])
@pytest.mark.parametrize("prefix", ["", "detector.", "module.detector."])
def test_ours(make_cfg, variant, prefix):
    state = {f"{prefix}{key}": value for key, value in build_detector(make_cfg(variant)).state_dict().items()}
    assert recognise(state) == "ours"
    assert to_ours(state, "ours").keys() == build_detector(make_cfg(variant)).state_dict().keys()


def test_others():
    assert recognise(torchvision.models.resnet18(weights=None).state_dict()) == "resnet"
    assert recognise({"weight": 0}) == "unknown"
    with pytest.raises(ValueError, match="'unknown'"):
        to_ours({}, "unknown")
