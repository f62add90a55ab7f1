"""Augmentation policy read from INPUT."""

import pytest

from projects_deformable_detr import get_cfg
from projects_deformable_detr.config.training import augmentation_policy
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.training import AugmentationPolicy, EmptyMasks


@pytest.fixture
def cfg():
    return get_cfg("standalone")


def test_training_has_detrs_augmentation_by_default(cfg):
    assert augmentation_policy(cfg, is_train=True) == AugmentationPolicy(
        min_sizes=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        max_size=1333,
        flip_prob=0.5,
        crop_prob=0.5,
        crop_resize=(400, 500, 600),
        crop_range=(384, 600),
    )


def test_evaluation_only_resizes(cfg):
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 320, 500
    assert augmentation_policy(cfg, is_train=False) == AugmentationPolicy((320,), 500)
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert augmentation_policy(cfg, is_train=False).min_sizes == (0,)


def test_random_augmentation_can_be_disabled(cfg):
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = "none", False, "relative"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (100, 103), "range"
    assert augmentation_policy(cfg, is_train=True) == AugmentationPolicy((100, 101, 102, 103), 1333)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("RANDOM_FLIP", "vertical"),
        ("MIN_SIZE_TRAIN_SAMPLING", "uniform"),
        ("MIN_SIZE_TRAIN", ()),
        ("MIN_SIZE_TRAIN", (480, 0)),
        ("CROP.TYPE", "relative"),
        ("CROP.SIZE", [600, 384]),
        ("CROP.SIZE", [384]),
        ("CROP.SIZE", [0.9, 0.9]),
        ("CROP.RESIZE", []),
    ],
)
def test_invalid_values(cfg, key, value):
    section, _, name = key.rpartition(".")
    (cfg.INPUT[section] if section else cfg.INPUT)[name] = value
    with pytest.raises(UserError, match=rf"INPUT\.{key} must be"):
        augmentation_policy(cfg, is_train=True)


def test_empty_masks_are_logged_at_most_once_in_a_thousand_iterations(caplog):
    caplog.set_level("INFO")
    counter = EmptyMasks()
    for iteration in range(1200):
        counter.add(int(iteration > 4), iteration)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["1", "1000"]
