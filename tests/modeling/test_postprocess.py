"""Detections from predictions."""

import pytest
import torch

from projects_deformable_detr.modeling import Predictions, postprocess


def naive_detections(predictions, image, size, topk):
    """Returns (score, label, corners) of one image, best first."""
    height, width = size
    found = []
    for scores, (cx, cy, w, h) in zip(
        predictions.logits[-1, image].sigmoid().tolist(), predictions.boxes[-1, image].tolist(), strict=True
    ):
        corners = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
        corners = [
            min(max(value, 0.0), side) for value, side in zip(corners, (width, height, width, height), strict=True)
        ]
        found += [(score, label, corners) for label, score in enumerate(scores)]
    return sorted(found, key=lambda item: -item[0])[:topk]


@pytest.mark.parametrize("topk", [1, 6, 19, 20, 100])
def test_equals_scalar_reference(make_random, topk):
    predictions = make_random.predictions(layers=2, batch=2, queries=5, classes=4)
    sizes = [(30, 50), (480, 333)]
    detections = postprocess(predictions, sizes, topk)
    for image, (found, size) in enumerate(zip(detections, sizes, strict=True)):
        expected = naive_detections(predictions, image, size, topk)
        assert len(found.scores) == len(found.labels) == len(found.boxes) == min(topk, 5 * 4)
        torch.testing.assert_close(found.scores, torch.tensor([item[0] for item in expected]))
        assert found.labels.tolist() == [item[1] for item in expected]
        torch.testing.assert_close(found.boxes, torch.tensor([item[2] for item in expected]))


def test_several_classes_of_one_query():
    logits = torch.full((1, 1, 3, 2), -9.0)
    logits[0, 0, 1] = torch.tensor([2.0, 3.0])
    boxes = torch.full((1, 1, 3, 4), 0.1)
    boxes[0, 0, 1] = torch.tensor([0.5, 0.5, 0.2, 0.4])
    (found,) = postprocess(Predictions(logits, boxes), [(100, 200)], topk=2)
    assert found.labels.tolist() == [1, 0]
    torch.testing.assert_close(found.boxes, torch.tensor([[80.0, 30.0, 120.0, 70.0]] * 2))


def test_boxes_are_clipped_to_the_image():
    boxes = torch.tensor([[[[0.0, 1.0, 0.5, 0.5]]]])
    (found,) = postprocess(Predictions(torch.zeros(1, 1, 1, 1), boxes), [(40, 80)])
    assert found.boxes.tolist() == [[0.0, 30.0, 20.0, 40.0]]


def test_only_the_last_layer_is_used(make_random):
    predictions = make_random.predictions(layers=3, batch=1)
    last = Predictions(predictions.logits[-1:], predictions.boxes[-1:])
    sizes = [(60, 70)]
    assert torch.equal(postprocess(predictions, sizes)[0].boxes, postprocess(last, sizes)[0].boxes)


def test_scores_of_half_precision_logits_are_float32(make_random):
    predictions = make_random.predictions(batch=1)
    half = Predictions(predictions.logits.bfloat16(), predictions.boxes)
    scores = postprocess(half, [(9, 9)])[0].scores
    assert scores.dtype == torch.float32
    assert torch.equal(scores, half.logits[-1].float().sigmoid().flatten().sort(descending=True).values)


def test_invalid_arguments(make_random):
    predictions = make_random.predictions(batch=2)
    with pytest.raises(ValueError, match="2 images, image_sizes 1"):
        postprocess(predictions, [(10, 10)])
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        postprocess(predictions, [(10, 10)] * 2, topk=0)
