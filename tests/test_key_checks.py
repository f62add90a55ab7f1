"""Keys of samplers and of test-time augmentation, checked before anything is built."""

import pytest

from projects_deformable_detr import get_cfg
from projects_deformable_detr.config.checks import check_sampler, dataset_weights
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


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler"])
def test_a_threshold_that_repeats_nothing(name, threshold):
    cfg = make(DATALOADER__SAMPLER_TRAIN=name, DATALOADER__REPEAT_THRESHOLD=threshold)
    with pytest.raises(UserError, match=f"REPEAT_THRESHOLD is {threshold}: {name}"):
        check_sampler(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    check_sampler(cfg)


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ([("nope", 2.0)], r"has \('nope', 2.0\): write pairs .* of cells, more"),
        ([("cells", 0.0)], "gives cells the weight 0.0: set a number above 0"),
        ([("cells", "much")], "gives cells the weight 'much'"),
        (["cells"], "has 'cells': write pairs"),
    ],
)
def test_weights_without_a_meaning(pairs, named):
    cfg = make(DATALOADER__SAMPLER_TRAIN="WeightedTrainingSampler", DATASETS__TRAIN_REPEAT_FACTOR=pairs)
    with pytest.raises(UserError, match=named):
        check_sampler(cfg)


def test_weights_by_data_set():
    assert dataset_weights(make(DATASETS__TRAIN_REPEAT_FACTOR=[("more", 3)])) == {"cells": 1.0, "more": 3.0}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"TEST__AUG__MIN_SIZES": ()}, r"TEST.AUG.MIN_SIZES must be positive sizes in pixels, got \(\)"),
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
