"""Dataset mapper: DETR's augmentations in Detectron2, and errors that name the file."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import transforms as T

from projects_deformable_detr.config.training import augmentation_policy
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.detectron2_plugin.mapper import DetrDatasetMapper, build_augmentations
from projects_deformable_detr.training import AugmentationPolicy

POLICY = AugmentationPolicy(
    flip_prob=0.5,
    min_sizes=(48, 64),
    max_size=100,
    crop_prob=0.5,
    crop_resize=(40, 50),
    crop_range=(38, 60),
)


def sampled_transforms(height, width, count=400):
    """Yields image size and transforms of ``count`` samples, without no-ops."""
    np.random.seed(0)
    augmentations = T.AugmentationList(build_augmentations(POLICY))
    for _ in range(count):
        image = T.AugInput(np.zeros((height, width, 3), np.uint8))
        applied = [t for t in augmentations(image).transforms if not isinstance(t, T.NoOpTransform)]
        yield image.image.shape[:2], applied


def test_crop_and_resize_follow_the_policy():
    cropped, crops, shorter_before = 0, [], set()
    for size, applied in sampled_transforms(60, 90):
        crop = [t for t in applied if isinstance(t, T.CropTransform)]
        resizes = [t for t in applied if isinstance(t, T.ResizeTransform)]
        assert len(resizes) == 1 + len(crop)
        assert min(size) in POLICY.min_sizes or max(size) == POLICY.max_size
        assert max(size) <= POLICY.max_size
        if crop:
            cropped += 1
            crops.append((crop[0].h, crop[0].w))
            shorter_before.add(min(resizes[0].new_h, resizes[0].new_w))
    assert 160 <= cropped <= 240  # half of 400, within four standard deviations
    assert shorter_before == set(POLICY.crop_resize)
    heights, widths = zip(*crops, strict=True)
    # The image is 40 or 50 high and 60 or 75 wide when it is cropped.
    assert min(heights) >= 38 and max(heights) == 50
    assert min(widths) >= 38 and max(widths) == 60
    assert len(set(widths)) > 15  # also sizes between the limits


def test_flip_and_sizes_are_drawn_evenly():
    flips, shorter = 0, []
    for size, applied in sampled_transforms(60, 60):
        flips += any(isinstance(t, T.HFlipTransform) for t in applied)
        if not any(isinstance(t, T.CropTransform) for t in applied):
            shorter.append(min(size))
    assert 160 <= flips <= 240
    assert 0.35 < np.mean(np.array(shorter) == 48) < 0.65


def test_evaluation_only_resizes(make_cfg):
    policy = augmentation_policy(make_cfg(), is_train=False)
    (resize,) = build_augmentations(policy)
    assert isinstance(resize, T.ResizeShortestEdge)
    assert tuple(resize.short_edge_length) == (64,) and resize.max_size == 96


def test_boxes_are_transformed_with_the_image(make_cfg, coco_files):
    record = {
        "file_name": f"{coco_files[1]}/0.png",
        "height": 64,
        "width": 80,
        "image_id": 1,
        "annotations": [
            {"bbox": [0, 0, 40, 32], "bbox_mode": 1, "category_id": 1, "iscrowd": 0},
            {"bbox": [0, 0, 80, 64], "bbox_mode": 1, "category_id": 0, "iscrowd": 1},
        ],
    }
    mapper = DetrDatasetMapper(
        make_cfg(INPUT__MIN_SIZE_TRAIN=(128,), INPUT__MAX_SIZE_TRAIN=160, INPUT__RANDOM_FLIP="none")
    )
    mapped = mapper(record)
    assert mapped["image"].shape == (3, 128, 160)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[0, 0, 80, 64]]
    assert mapped["instances"].gt_classes.tolist() == [1]


def test_image_whose_size_differs_from_the_record(make_cfg, coco_files):
    record = {"file_name": f"{coco_files[1]}/0.png", "height": 65, "width": 80, "annotations": []}
    with pytest.raises(DatasetError, match=r"0\.png is 80 x 64 .*80 x 65"):
        DetrDatasetMapper(make_cfg())(record)


def test_other_errors_are_unchanged(make_cfg, coco_files):
    record = {"file_name": f"{coco_files[1]}/0.png", "height": 64, "width": 80, "annotations": [{"bbox": [0, 0, 9, 9]}]}
    with pytest.raises(KeyError, match="bbox_mode"):
        DetrDatasetMapper(make_cfg())(record)


@pytest.mark.parametrize("suffix", ["tiff", "png"])
@pytest.mark.parametrize("is_train", [True, False])
def test_pixels_equal_those_of_the_projects_reader(make_cfg, tmp_path, suffix, is_train):
    """A 16-bit file with an EXIF orientation, which Detectron2's reader would saturate and rotate twice."""
    gray = np.arange(0, 6000, 2, dtype=np.uint16).reshape(50, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gray).save(tmp_path / f"gray.{suffix}", exif=exif)
    sizes = {"INPUT__MIN_SIZE_TRAIN": (50,), "INPUT__MIN_SIZE_TEST": 50, "INPUT__RANDOM_FLIP": "none"}
    cfg = make_cfg(INPUT__CROP__ENABLED=False, INPUT__INTENSITY_WINDOW=(0, 6000), **sizes)
    mapped = DetrDatasetMapper(cfg, is_train)({"file_name": str(tmp_path / f"gray.{suffix}"), "annotations": []})
    expected = np.rint(np.rot90(gray, -1) * (255 / 6000)).astype(np.uint8)
    np.testing.assert_array_equal(mapped["image"], np.stack([expected] * 3))
    assert (mapped["height"], mapped["width"]) == (60, 50)
