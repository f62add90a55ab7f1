"""Test-time augmentation: several views, one set of detections in the image's own pixels."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from projects_deformable_detr.errors import UserError
from projects_deformable_detr.evaluation import TestTimeAugmentationConfig
from projects_deformable_detr.evaluation.tta import detect_with_tta
from projects_deformable_detr.modeling import Predictions, postprocess
from projects_deformable_detr.modeling.structures import MaskLogits
from projects_deformable_detr.standalone import main

AUG = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(40, 56)", "TEST.AUG.MAX_SIZE", 64)


class Seeing:
    """A model that finds the bright pixels of each image; surer of larger images; it remembers their sizes."""

    def __init__(self, shift: float = 0.0) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.shift = shift

    def __call__(self, images: Tensor) -> Predictions:
        height, width = images.shape[-2:]
        self.sizes.append((height, width))
        boxes = []
        for bright in images[:, 0] > 127:
            rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
            left, right = columns[0] / width, (columns[-1] + 1) / width
            top, bottom = rows[0] / height, (rows[-1] + 1) / height
            centre = (left + right) / 2 + self.shift * (height == 32), (top + bottom) / 2
            boxes.append(torch.stack([*centre, right - left, bottom - top]))
        logits = torch.full((1, len(images), 1, 3), -9.0)
        logits[..., 1] = height / 100
        return Predictions(logits, torch.stack(boxes)[None, :, None])


def images() -> Tensor:
    pixels = torch.zeros(2, 3, 64, 80, dtype=torch.uint8)
    pixels[0, :, 16:48, 8:40] = 255
    pixels[1, :, 0:20, 60:80] = 255
    return pixels


def test_views_are_merged_in_the_images_pixels() -> None:
    model = Seeing()
    found = detect_with_tta(
        model, images(), TestTimeAugmentationConfig((32, 64), 200, True, 0.7), 1, score_threshold=0.3
    )
    assert model.sizes == [(32, 40), (32, 40), (64, 80), (64, 80)]
    for item, box in zip(found, ([8.0, 16, 40, 48], [60.0, 0, 80, 20]), strict=True):
        assert item.labels.tolist() == [1] and item.scores[0] == pytest.approx(torch.sigmoid(torch.tensor(0.64)))
        assert item.boxes[0].tolist() == pytest.approx(box, abs=2.0)


def test_what_overlaps_too_little_stays_apart_and_the_best_stay() -> None:
    model = Seeing(shift=0.12)
    apart = detect_with_tta(
        model, images(), TestTimeAugmentationConfig((32, 64), 200, False, 0.7), 5, score_threshold=0.3
    )
    assert [len(item.scores) for item in apart] == [2, 2]
    assert apart[0].scores[0] > apart[0].scores[1]
    together = detect_with_tta(
        model, images(), TestTimeAugmentationConfig((32, 64), 200, False, 0.2), 5, score_threshold=0.3
    )
    assert [len(item.scores) for item in together] == [1, 1]
    assert [
        len(item.scores)
        for item in detect_with_tta(model, images(), TestTimeAugmentationConfig((32, 64), 200, False, 0.7), 1)
    ] == [1, 1]


def test_a_run_measures_with_views_too(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    best = ("TEST.BEST_CHECKPOINT.ENABLED", True, "SOLVER.EMA.ENABLED", True)
    trained = main(make_args(tmp_path, *AUG, *best, "SOLVER.MAX_ITER", 14))
    assert trained.keys() == {"bbox", "bbox_TTA"}
    logged = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in logged if "bbox_TTA/AP" in row] == [13]
    weights = tmp_path / "model_final.pth"
    again = main(make_args(tmp_path / "eval", "--eval-only", *AUG, "MODEL.WEIGHTS", weights))
    for kind in ("bbox", "bbox_TTA"):
        assert again[kind] == pytest.approx(trained[kind], abs=0.1, nan_ok=True)
    files = [tmp_path / name / "coco_instances_results.json" for name in ("inference", "inference_TTA")]
    plain, merged = (json.loads(file.read_text()) for file in files)
    assert 7 * 16 == len(plain) < len(merged) <= 7 * 100


def test_one_view_of_the_plain_size_gives_the_plain_detections(
    make_args: Callable[..., Namespace], tmp_path: Path
) -> None:
    one = ("TEST.AUG.MIN_SIZES", "(48,)", "TEST.AUG.FLIP", False, "MODEL.DETR.TTA_NMS_THRESH", 1.0)
    main(make_args(tmp_path, *AUG, *one, "SOLVER.MAX_ITER", 2))
    files = [tmp_path / name / "coco_instances_results.json" for name in ("inference", "inference_TTA")]
    plain, merged = (json.loads(file.read_text()) for file in files)
    assert [row["score"] for row in merged] == pytest.approx([row["score"] for row in plain], abs=2e-3)
    assert [row["image_id"] for row in merged] == [row["image_id"] for row in plain]


class SeeingMasks(Seeing):
    """Gives each box's pixels as its mask, too; it remembers how many masks of which size it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, images: Tensor) -> Predictions:
        found = super().__call__(images)
        bright = (images[:, 0] > 127).float() * 2 - 1

        class Masks:
            """What `MaskLogits` tells of one query an image."""

            padding_mask = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)
            image_sizes = [(int(images.shape[-2]), int(images.shape[-1]))] * len(images)

            def __call__(self, image: Tensor, query: Tensor) -> Tensor:
                asked.append((bright.shape[1:], len(query)))
                return bright[image]

        asked = self.asked
        return replace(found, masks=cast(MaskLogits, Masks()))


def test_masks_go_with_their_boxes() -> None:
    model = SeeingMasks()
    found = detect_with_tta(model, images(), TestTimeAugmentationConfig((32, 64), 200, True, 0.7), 1)
    assert model.asked == [((64, 80), 1)] * 2  # of what stays only
    for item, image in zip(found, images(), strict=True):
        assert item.masks is not None and item.masks.shape == (1, 64, 80)
        truth = image[0] > 127
        assert (item.masks[0] & truth).sum() / (item.masks[0] | truth).sum() > 0.9


def test_masks_of_several_queries_are_those_of_every_view_on_its_own() -> None:
    """As if all masks of all views had been made, and then those of the kept boxes chosen."""
    generator = torch.Generator().manual_seed(0)
    views = {}

    def predict(seen: Tensor) -> Predictions:
        mirrored = bool(seen[0, 0, 0, 0] < seen[0, 0, 0, -1])  # the left edge is the bright one
        key = seen.shape[-2], mirrored
        logits = torch.randn(2, 5, *seen.shape[-2:], generator=generator)
        padding = torch.zeros(2, *seen.shape[-2:], dtype=torch.bool)
        masks = MaskLogits(lambda image, query: logits[image, query], padding, 5)
        boxes = torch.rand(1, 2, 5, 4, generator=generator) * 0.3 + 0.3
        views[key] = Predictions(torch.randn(1, 2, 5, 3, generator=generator), boxes, masks=masks)
        return views[key]

    pixels = torch.zeros(2, 3, 64, 80, dtype=torch.uint8)
    pixels[..., 0] = 255
    found = detect_with_tta(predict, pixels, TestTimeAugmentationConfig((32, 64), 200, True, 0.5), 12)
    assert len(views) == 4
    whole = {key: postprocess(view, [(64, 80)] * 2, 12) for key, view in views.items()}
    chosen = 0
    for image, item in enumerate(found):
        assert item.masks is not None and len(item.masks) == len(item.scores) == 12
        for score, mask in zip(item.scores, item.masks, strict=True):
            (place,) = [
                (key, index) for key, parts in whole.items() for index in (parts[image].scores == score).nonzero()
            ]
            masks = whole[place[0]][image].masks
            assert masks is not None
            expected = masks[place[1][0]].flip(-1) if place[0][1] else masks[place[1][0]]
            assert torch.equal(mask, expected)
            chosen += place[0][1]
    assert 0 < chosen < 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.DETR.PANOPTIC.ENABLED", True), "TEST.AUG.ENABLED cannot be combined with panoptic"),
        (("TEST.AUG.MIN_SIZES", "()"), "TEST.AUG.MIN_SIZES must be positive"),
        (("TEST.AUG.MIN_SIZES", "(0, 40)"), "TEST.AUG.MIN_SIZES must be positive"),
    ],
)
def test_keys_that_cannot_be_followed(
    make_args: Callable[..., Namespace], tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main(make_args(tmp_path, *AUG, *options))
