"""Panoptic segmentations of constructed masks."""

import pytest
import torch

from projects_deformable_detr.modeling import Predictions, panoptic_postprocess
from projects_deformable_detr.modeling.structures import MaskLogits

THINGS = 2  # classes 0 and 1; 2 and 3 are stuff


def predictions(rows, no_object=True, size=(8, 8)):
    """Builds predictions of one image from queries (class, score, (region, logit)…); a region is (rows, columns)."""
    logits = torch.full((1, 1, len(rows), 5 if no_object else 4), -20.0)
    masks = torch.full((1, len(rows), *size), -10.0)
    for query, (label, score, *regions) in enumerate(rows):
        if no_object:
            rest = (1 - score) / 4
            logits[0, 0, query] = torch.full((5,), rest).log()
            logits[0, 0, query, label] = torch.tensor(score).log()
        else:
            logits[0, 0, query, label] = torch.tensor(score).logit()
        for part, value in regions:
            masks[0, query][part] = value
    padding = torch.zeros(1, *size, dtype=torch.bool)
    found = MaskLogits(lambda image, query: masks[image, query], padding, len(rows))
    return Predictions(logits, torch.rand(1, 1, len(rows), 4), masks=found, no_object=no_object)


def box(top, bottom, left, right):
    return slice(top, bottom), slice(left, right)


ALL, LEFT, RIGHT = box(0, 8, 0, 8), box(0, 8, 0, 4), box(0, 8, 4, 8)


def segment(rows, size=(8, 8), **options):
    (found,) = panoptic_postprocess(predictions(rows, options.pop("no_object", True)), [size], range(THINGS), **options)
    assert found.ids.dtype == torch.int32 and found.ids.shape == size
    areas = {item["id"]: item["area"] for item in found.segments}
    assert areas == {i: int((found.ids == i).sum()) for i in found.ids.unique().tolist() if i}
    assert list(areas) == list(range(1, len(areas) + 1))
    return found


def test_pixels_belong_to_the_largest_logit():
    found = segment([(0, 0.9, (LEFT, 3.0)), (0, 0.95, (box(0, 8, 3, 8), 2.0)), (2, 0.99, (ALL, 1.0))])
    assert [(s["category_id"], s["isthing"], s["area"]) for s in found.segments] == [(0, True, 32), (0, True, 32)]
    assert (found.ids[:, :4] == 1).all() and (found.ids[:, 4:] == 2).all()
    assert [s["score"] for s in found.segments] == pytest.approx([0.9, 0.95])


def test_no_object_and_low_scores_are_dropped():
    rows = [(0, 0.9, (LEFT, 1.0)), (4, 0.99, (ALL, 9.0)), (1, 0.85, (ALL, 9.0)), (1, 0.8, (ALL, 9.0))]
    assert [s["category_id"] for s in segment(rows).segments] == [0]
    assert len(segment(rows, score_threshold=0.82).segments) == 1  # class 1 covers everything
    assert segment(rows, score_threshold=0.82).segments[0]["category_id"] == 1


def test_stuff_is_merged_by_class_and_things_are_not():
    parts = [(box(0, 8, 2 * i, 2 * i + 2), 5.0) for i in range(4)]
    rows = [(2, 0.9, parts[0]), (0, 0.9, parts[1]), (2, 0.95, parts[2]), (0, 0.9, parts[3])]
    found = segment(rows)
    assert sorted((s["category_id"], s["area"]) for s in found.segments) == [(0, 16), (0, 16), (2, 32)]
    assert found.ids[0, 0] == found.ids[0, 4] and found.ids[0, 2] != found.ids[0, 6]
    stuff = next(s for s in found.segments if s["category_id"] == 2)
    assert stuff["score"] == pytest.approx(0.95) and stuff["isthing"] is False


def test_merged_stuff_keeps_pixels_of_all_masks():
    """The published code would give the second mask's pixels to the third."""
    found = segment([(2, 0.9, (LEFT, 5.0)), (2, 0.9, (RIGHT, 5.0)), (0, 0.9, (ALL, 1.0))])
    assert [(s["category_id"], s["area"]) for s in found.segments] == [(2, 64)]


def test_small_segments_are_dropped_repeatedly():
    rows = [
        (0, 0.9, (ALL, 1.0)),
        (1, 0.9, (box(0, 2, 0, 2), 5.0)),  # 4 pixels: dropped, its pixels are reassigned
        (
            1,
            0.9,
            (box(0, 1, 0, 5), 3.0),
            (box(0, 1, 0, 2), 4.0),
        ),  # 3 pixels, as two belong to the last one: dropped
        (3, 0.9, (box(7, 8, 0, 5), 5.0)),  # 5 pixels: kept
    ]
    found = segment(rows)
    assert [(s["category_id"], s["area"]) for s in found.segments] == [(0, 59), (3, 5)]
    assert len(segment(rows, min_area=0).segments) == 4


def test_pixels_of_dropped_segments_are_reassigned():
    rows = [(0, 0.9, (ALL, 1.0)), (1, 0.9, (box(0, 2, 0, 3), 2.0)), (0, 0.9, (box(0, 2, 0, 2), 3.0))]
    # The last one has 4 pixels and the second 2: both are dropped.
    assert [(s["category_id"], s["area"]) for s in segment(rows).segments] == [(0, 64)]
    # With one more row, the second has 5, and those of the last one are reassigned to it.
    rows[1] = (1, 0.9, (box(0, 3, 0, 3), 2.0))
    assert [(s["category_id"], s["area"]) for s in segment(rows).segments] == [(0, 55), (1, 9)]


def test_area_of_merged_stuff():
    rows = [(0, 0.9, (ALL, 1.0)), (2, 0.9, (box(0, 1, 0, 3), 5.0)), (2, 0.9, (box(7, 8, 0, 3), 5.0))]
    assert [(s["category_id"], s["area"]) for s in segment(rows).segments] == [(0, 58), (2, 6)]


def test_images_without_segments_are_void():
    for rows in ([(4, 0.99, (ALL, 5.0))], [(0, 0.5, (ALL, 5.0))]):
        found = segment(rows)
        assert found.segments == [] and not found.ids.any()
    found = segment([(0, 0.9, (ALL, 5.0))], min_area=64)
    assert found.segments == [] and not found.ids.any()


def test_sigmoid_scores_at_another_size():
    found = segment([(0, 0.6, (LEFT, 2.0)), (3, 0.7, (RIGHT, 2.0))], (16, 24), no_object=False, score_threshold=0.5)
    assert [(s["category_id"], s["area"]) for s in found.segments] == [(0, 192), (3, 192)]
    assert (found.ids[:, :12] == 1).all()


def test_invalid_arguments():
    made = predictions([(0, 0.9, (ALL, 1.0))])
    with pytest.raises(ValueError, match="1 images, image_sizes 2"):
        panoptic_postprocess(made, [(8, 8)] * 2, range(THINGS))
    with pytest.raises(ValueError, match="mask head"):
        panoptic_postprocess(Predictions(made.logits, made.boxes, no_object=True), [(8, 8)], range(THINGS))
