"""Detection of formats by keys."""

import pytest
import torchvision

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import detect, to_ours
from projects_deformable_detr.checkpoint.formats import OURS


@pytest.mark.parametrize("variant", ["multi_scale", "encoder_only", "detr"])
@pytest.mark.parametrize("prefix", ["", "detector.", "module.detector."])
def test_ours(make_cfg, variant, prefix):
    state = {f"{prefix}{key}": value for key, value in build_detector(make_cfg(variant)).state_dict().items()}
    assert detect(state).name == "ours"
    assert to_ours(state, OURS).keys() == build_detector(make_cfg(variant)).state_dict().keys()


def test_others():
    assert detect(torchvision.models.resnet18(weights=None).state_dict()).name == "resnet"
    assert detect({"weight": 0}) is None
