"""Checks of ground truth, and error messages that name the image."""

import math
from dataclasses import replace

import pytest
import torch

from projects_deformable_detr import build_criterion, build_detector
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.modeling import Targets, check_targets
from projects_deformable_detr.modeling.detector import batch_images

VALID = Targets(torch.tensor([0, 2]), torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.1, 0.2, 0.0, 0.0]]), size=(40, 60))


def with_box(*box):
    return replace(VALID, boxes=torch.tensor([[0.5, 0.5, 0.1, 0.1], box]))


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (with_box(0.5, 0.5, -0.2, 0.1), r"\(36, 18, 24, 22\) in pixels of 40 x 60 of a.jpg .*exchanged"),
        (with_box(0.5, math.nan, 0.1, 0.1), "a.jpg is not finite"),
        (with_box(0.5, 0.5, math.inf, 0.1), "a.jpg is not finite"),
        (with_box(0.5, 0.99, 0.1, 0.1), r"\(27, 37.6, 33, 41.6\) .* a.jpg leaves its image"),
        (with_box(0.0, 0.5, 0.1, 0.1), "a.jpg leaves its image"),
        (replace(with_box(30.0, 20.0, 10.0, 10.0), size=None), "a.jpg leaves its image: .*normalized"),
        (replace(VALID, labels=torch.tensor([0, 3])), "a.jpg has class id 3, but the model has 3 classes"),
        (replace(VALID, labels=torch.tensor([0, -1])), "a.jpg has class id -1"),
        (replace(VALID, labels=torch.tensor([0.0, 1.0])), "labels of a.jpg must be int64 .*float32"),
        (replace(VALID, labels=torch.tensor([1])), r"boxes of a.jpg must be .*1 labels.* \(2, 4\)"),
        (replace(VALID, boxes=torch.zeros(2, 4).long()), "boxes of a.jpg must be floats"),
        (replace(VALID, masks=torch.zeros(2, 40, 61).bool()), r"masks of a.jpg must .*\(2, 40, 60\).*61"),
        (replace(VALID, masks=torch.zeros(1, 40, 60).bool()), r"masks of a.jpg must .*\(2, 40, 60\)"),
    ],
)
def test_invalid_targets(target, named):
    with pytest.raises(UserError, match=named):
        check_targets([VALID, replace(target, name="a.jpg")], 3)


def test_valid_targets():
    empty = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    rounded = with_box(0.5, 0.5, 1.0 + 1e-3, 1.0 + 1e-3)  # by less than a pixel
    check_targets([VALID, empty, rounded, replace(VALID, masks=torch.zeros(2, 40, 60).bool())], 3)


def test_tensors_on_a_device_are_not_read():
    check_targets([replace(VALID, labels=VALID.labels.to("meta"), boxes=VALID.boxes.to("meta"))], 3)


def test_dicts_are_rejected(make_cfg, make_random):
    with pytest.raises(ArgumentError, match="targets must be a list of Targets, got dict"):
        build_criterion(make_cfg())(make_random.predictions(batch=1), [{"labels": VALID.labels, "boxes": VALID.boxes}])


def test_images_are_named_in_matching_errors(make_cfg, make_random):
    criterion = build_criterion(make_cfg())
    targets = [replace(target, name=f"{target.labels.numel()}.jpg") for target in make_random.targets((3, 6), 4)]
    with pytest.raises(match=r"^6\.jpg has 6 ground-truth boxes, but there are 5 queries"):
        criterion(make_random.predictions(), targets)
    predictions = make_random.predictions(queries=9)
    predictions.logits[0, 0] = math.nan
    with pytest.raises(match=r"^the matching cost of 3\.jpg in decoder layer 0 is not finite"):
        criterion(predictions, targets)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["two_stage", "encoder_only", "detr"])
def test_predictions_that_are_not_finite_name_the_weights(make_cfg, variant):
    detector = build_detector(make_cfg(variant)).eval()
    images, mask = batch_images([torch.randn(3, 64, 64)])
    detector(images, mask)
    with pytest.raises(match="images are NaN or infinite"):
        detector(images.masked_fill(images > 1, math.nan), mask)
    detector.encoder.layers[1].ffn.linear1.weight[0, 0] = math.nan
    with pytest.raises(match=r"weights are NaN or infinite: encoder\.layers\.1\.ffn\.linear1\.weight;"):
        detector(images, mask)


@pytest.mark.parametrize(
    ("images", "mask", "named"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 32, 32, dtype=torch.bool), "images must .*uint8"),
        (torch.zeros(3, 32, 32), torch.zeros(32, 32, dtype=torch.bool), "images must be normalized floats"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 33, dtype=torch.bool), "padding_mask must be bool"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32), "padding_mask must be bool .*float32"),
    ],
)
def test_invalid_inputs_of_the_detector(make_cfg, images, mask, named):
    with pytest.raises(ArgumentError, match=named):
        build_detector(make_cfg())(images, mask)
