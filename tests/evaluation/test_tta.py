"""Test-time augmentation: detections from several views are merged in pixels of the image."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from projects_deformable_detr.evaluation import TestTimeAugmentationConfig
from projects_deformable_detr.evaluation.tta import detect_with_tta
from projects_deformable_detr.modeling import Predictions, postprocess
from projects_deformable_detr.modeling.structures import MaskLogits


def config(flip: bool = True, nms_threshold: float = 0.7) -> TestTimeAugmentationConfig:
    return TestTimeAugmentationConfig((32, 64), 200, flip, nms_threshold)


class BrightPixels:
    """A model that detects the bright pixels of each image, with higher scores in larger images.

    Args:
        shift: moves the boxes in images of height 32 to the right, by a fraction of the width.
        with_masks: also predicts the bright pixels as masks; records which masks are computed.
    """

    def __init__(self, shift: float = 0.0, with_masks: bool = False) -> None:
        self.shift = shift
        self.with_masks = with_masks
        self.sizes: list[tuple[int, int]] = []
        self.computed: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, images: Tensor) -> Predictions:
        height, width = images.shape[-2:]
        self.sizes.append((height, width))
        boxes = []
        for bright in images[:, 0] > 127:
            rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
            left, right = columns[0] / width, (columns[-1] + 1) / width
            top, bottom = rows[0] / height, (rows[-1] + 1) / height
            center = (left + right) / 2 + self.shift * (height == 32), (top + bottom) / 2
            boxes.append(torch.stack([*center, right - left, bottom - top]))
        logits = torch.full((1, len(images), 1, 3), -9.0)
        logits[..., 1] = height / 100
        predictions = Predictions(logits, torch.stack(boxes)[None, :, None])
        return replace(predictions, masks=self.masks(images)) if self.with_masks else predictions

    def masks(self, images: Tensor) -> MaskLogits:
        bright = (images[:, 0] > 127).float() * 2 - 1

        def select(image: Tensor, query: Tensor) -> Tensor:
            self.computed.append((tuple(bright.shape[1:]), len(query)))
            return bright[image]

        return MaskLogits(select, torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool), 1)


def images() -> Tensor:
    pixels = torch.zeros(2, 3, 64, 80, dtype=torch.uint8)
    pixels[0, :, 16:48, 8:40] = 255
    pixels[1, :, 0:20, 60:80] = 255
    return pixels


def test_views_are_merged_in_pixels_of_the_image() -> None:
    model = BrightPixels()
    found = detect_with_tta(model, images(), config(), 1, score_threshold=0.3)
    assert model.sizes == [(32, 40), (32, 40), (64, 80), (64, 80)]
    for item, box in zip(found, ([8.0, 16, 40, 48], [60.0, 0, 80, 20]), strict=True):
        assert item.labels.tolist() == [1] and item.scores[0] == pytest.approx(torch.sigmoid(torch.tensor(0.64)))
        assert item.boxes[0].tolist() == pytest.approx(box, abs=2.0)


def test_overlaps_below_the_threshold_are_kept_and_topk_limits_the_detections() -> None:
    model = BrightPixels(shift=0.12)
    apart = detect_with_tta(model, images(), config(flip=False), 5, score_threshold=0.3)
    assert [len(item.scores) for item in apart] == [2, 2]
    assert apart[0].scores[0] > apart[0].scores[1]
    together = detect_with_tta(model, images(), config(flip=False, nms_threshold=0.2), 5, score_threshold=0.3)
    assert [len(item.scores) for item in together] == [1, 1]
    assert [len(item.scores) for item in detect_with_tta(model, images(), config(flip=False), 1)] == [1, 1]


def test_masks_are_computed_for_kept_detections_only() -> None:
    model = BrightPixels(with_masks=True)
    found = detect_with_tta(model, images(), config(), 1)
    assert model.computed == [((64, 80), 1)] * 2
    for item, image in zip(found, images(), strict=True):
        assert item.masks is not None and item.masks.shape == (1, 64, 80)
        truth = image[0] > 127
        assert (item.masks[0] & truth).sum() / (item.masks[0] | truth).sum() > 0.9


def test_masks_equal_those_of_each_view() -> None:
    """Compares with computing the masks of all views first and selecting those of the kept boxes."""
    generator = torch.Generator().manual_seed(0)
    views = {}

    def predict(view: Tensor) -> Predictions:
        is_flipped = bool(view[0, 0, 0, 0] < view[0, 0, 0, -1])  # the left edge of the image is bright
        logits = torch.randn(2, 5, *view.shape[-2:], generator=generator)
        padding = torch.zeros(2, *view.shape[-2:], dtype=torch.bool)
        masks = MaskLogits(lambda image, query: logits[image, query], padding, 5)
        boxes = torch.rand(1, 2, 5, 4, generator=generator) * 0.3 + 0.3
        predictions = Predictions(torch.randn(1, 2, 5, 3, generator=generator), boxes, masks=masks)
        views[view.shape[-2], is_flipped] = predictions
        return predictions

    pixels = torch.zeros(2, 3, 64, 80, dtype=torch.uint8)
    pixels[..., 0] = 255
    found = detect_with_tta(predict, pixels, config(nms_threshold=0.5), 12)
    whole = {key: postprocess(view, [(64, 80)] * 2, 12) for key, view in views.items()}
    assert len(views) == 4
    flipped = 0
    for image, item in enumerate(found):
        assert item.masks is not None and len(item.masks) == len(item.scores) == 12
        for score, mask in zip(item.scores, item.masks, strict=True):
            ((_, is_flipped), detections, row) = next(
                (key, parts[image], row)
                for key, parts in whole.items()
                for row in (parts[image].scores == score).nonzero()
            )
            expected = cast(Tensor, detections.masks)[row[0]]
            assert torch.equal(mask, expected.flip(-1) if is_flipped else expected)
            flipped += is_flipped
    assert 0 < flipped < 24
