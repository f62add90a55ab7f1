"""The augmentation that both engines carry out, read from INPUT."""

import pytest

from projects_deformable_detr import get_cfg
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.training.augmentation import AugmentationPolicy


@pytest.fixture
def cfg():
    return get_cfg("standalone")


def test_training_is_detrs_by_default(cfg):
    policy = AugmentationPolicy.from_cfg(cfg, is_train=True)
    assert policy == AugmentationPolicy(
        flip_prob=0.5,
        min_sizes=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        max_size=1333,
        crop_prob=0.5,
        crop_resize=(400, 500, 600),
        crop_range=(384, 600),
        image_format="RGB",
    )


def test_evaluation_only_resizes(cfg):
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT = 320, 500, "BGR"
    policy = AugmentationPolicy.from_cfg(cfg, is_train=False)
    assert policy == AugmentationPolicy(0.0, (320,), 500, 0.0, (), (0, 0), "BGR")


def test_switches(cfg):
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (100, 103), "range"
    policy = AugmentationPolicy.from_cfg(cfg, is_train=True)
    assert (policy.flip_prob, policy.crop_prob, policy.crop_resize, policy.crop_range) == (0.0, 0.0, (), (0, 0))
    assert policy.min_sizes == (100, 101, 102, 103)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("FORMAT", "L"),
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
def test_a_value_without_meaning_is_named(cfg, key, value):
    node = cfg.INPUT
    *sections, name = key.split(".")
    for section in sections:
        node = node[section]
    node[name] = value
    with pytest.raises(UserError, match=rf"INPUT\.{key} "):
        AugmentationPolicy.from_cfg(cfg, is_train=True)


def test_values_of_a_switched_off_crop_do_not_matter(cfg):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = False, "relative"
    assert AugmentationPolicy.from_cfg(cfg, is_train=True).crop_prob == 0
