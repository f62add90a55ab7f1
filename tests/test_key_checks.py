"""Keys of test-time augmentation, checked before anything is built."""

import pytest

from projects_deformable_detr import get_cfg
from projects_deformable_detr.config.evaluation import evaluation_config
from projects_deformable_detr.errors import UserError


def make(**keys):
    cfg = get_cfg("standalone")
    cfg.DATASETS.TRAIN = ("cells", "more")
    for key, value in keys.items():
        node, name = cfg, key.split("__")
        for part in name[:-1]:
            node = node[part]
        node[name[-1]] = value
    return cfg


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"TEST__AUG__MIN_SIZES": ()}, r"TEST.AUG.MIN_SIZES must be positive sizes in pixels, got \(\)"),
        ({"TEST__AUG__MIN_SIZES": (0, 40)}, "TEST.AUG.MIN_SIZES must be positive"),
        ({"TEST__AUG__MAX_SIZE": 0}, "TEST.AUG.MAX_SIZE must be .*, got 0"),
        ({"MODEL__DETR__TTA_NMS_THRESH": 5.0}, r"MODEL.DETR.TTA_NMS_THRESH must be an IoU in \[0, 1\], got 5.0"),
        ({"MODEL__DETR__PANOPTIC__ENABLED": True}, "TEST.AUG.ENABLED cannot be combined with panoptic segmentation"),
    ],
)
def test_invalid_test_time_augmentation(keys, named):
    cfg = make(**keys)
    evaluation_config(cfg)
    cfg.TEST.AUG.ENABLED = True
    with pytest.raises(UserError, match=named):
        evaluation_config(cfg)
