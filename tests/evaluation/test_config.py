"""Validation of the keys of test-time augmentation."""

import pytest

from projects_deformable_detr import get_cfg
from projects_deformable_detr.config.evaluation import evaluation_config
from projects_deformable_detr.errors import UserError


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TEST.AUG.MIN_SIZES", (), r"TEST.AUG.MIN_SIZES must be sizes in pixels, got \(\)"),
        ("TEST.AUG.MIN_SIZES", (0, 40), "TEST.AUG.MIN_SIZES must be at least 1"),
        ("TEST.AUG.MAX_SIZE", 0, "TEST.AUG.MAX_SIZE must be .*, got 0"),
        ("MODEL.DETR.TTA_NMS_THRESH", 5.0, r"MODEL.DETR.TTA_NMS_THRESH must be in \[0, 1\], got 5.0"),
        ("MODEL.DETR.PANOPTIC.ENABLED", True, "TEST.AUG.ENABLED cannot be combined with panoptic segmentation"),
    ],
)
def test_invalid_test_time_augmentation(key, value, message):
    cfg = get_cfg("standalone")
    cfg.merge_from_list([key, value])
    evaluation_config(cfg)
    cfg.TEST.AUG.ENABLED = True
    with pytest.raises(UserError, match=message):
        evaluation_config(cfg)
