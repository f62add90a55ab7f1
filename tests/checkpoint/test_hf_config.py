"""From transformers' backbone_config to ours: which stages are features."""

import pytest

from projects_deformable_detr.checkpoint import CheckpointError
from projects_deformable_detr.checkpoint.hf_config import resnet_of

TIMM = {"model_type": "timm_backbone", "backbone": "resnet50"}


@pytest.mark.parametrize(
    ("backbone", "features"),
    [
        (TIMM | {"out_indices": [2, 3, 4]}, ["res3", "res4", "res5"]),
        (TIMM | {"out_indices": [-1]}, ["res5"]),
        (TIMM, ["res5"]),
        ({"model_type": "resnet", "out_features": ["stage2", "stage4"]}, ["res3", "res5"]),
        ({"model_type": "resnet", "out_indices": [1, 4]}, ["res2", "res5"]),
        ({"model_type": "resnet"}, ["res5"]),
    ],
)
def test_stages(backbone, features):
    assert resnet_of(backbone)["OUT_FEATURES"] == features


@pytest.mark.parametrize(
    ("backbone", "named"),
    [
        (TIMM | {"out_indices": [0, 4]}, "0"),
        (TIMM | {"out_indices": [5]}, "5"),
        (TIMM | {"out_indices": [-2]}, "-2"),
        ({"model_type": "resnet", "out_features": ["stem", "stage4"]}, "'stem'"),
        ({"model_type": "resnet", "out_features": ["stage5"]}, "'stage5'"),
    ],
)
def test_other_stages_are_refused(backbone, named):
    with pytest.raises(CheckpointError, match=f"backbone_config: {named} is none of the stages"):
        resnet_of(backbone)
