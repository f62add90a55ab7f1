"""Panoptic quality of small cases with known results."""

import numpy as np
import pytest

from projects_deformable_detr.evaluation.panoptic import PanopticQuality

THING, OTHER, STUFF = 1, 2, 7
KINDS = {THING: True, OTHER: True, STUFF: False}


def strip(*runs):
    """Returns a map of one row from pairs (id, number of pixels)."""
    return np.repeat([run[0] for run in runs], [run[1] for run in runs]).astype(np.int32)[None]


def segments(**categories):
    return [{"id": int(name[1:]), "category_id": category} for name, category in categories.items()]


def measured(true_ids, truth, pred_ids, pred):
    quality = PanopticQuality(KINDS)
    quality.add(true_ids, truth, pred_ids, pred)
    return quality.compute({THING: "thing", OTHER: "other", STUFF: "stuff"})


def test_perfect_prediction():
    ids, listed = strip((1, 10), (2, 20), (3, 30)), segments(s1=THING, s2=THING, s3=STUFF)
    metrics = measured(ids, listed, ids + 100, [{**item, "id": item["id"] + 100} for item in listed])
    assert all(metrics[name + part] == 100 for name in ("PQ", "SQ", "RQ") for part in ("", "_th", "_st"))
    assert metrics["PQ-thing"] == metrics["PQ-stuff"] == 100 and np.isnan(metrics["PQ-other"])


def test_iou_false_positives_and_false_negatives():
    # Thing 1 has 10 pixels, its prediction 8 of them and 2 others: IoU 8/12. Thing 2 has no prediction.
    true_ids = strip((1, 10), (2, 10), (7, 20))
    pred_ids = strip((5, 2), (1, 8), (1, 2), (9, 8), (5, 20))
    metrics = measured(
        true_ids, segments(s1=THING, s2=THING, s7=STUFF), pred_ids, segments(s1=THING, s9=OTHER, s5=STUFF)
    )
    # Stuff: IoU 20/22. Thing: one true positive (8/12), one false negative. Other: one false positive.
    thing, stuff = (8 / 12) / (1 + 0.5), 20 / 22
    assert metrics["PQ-thing"] == pytest.approx(100 * thing)
    assert metrics["PQ-stuff"] == pytest.approx(100 * stuff)
    assert metrics["PQ-other"] == 0
    assert metrics["PQ"] == pytest.approx(100 * (thing + stuff + 0) / 3)
    assert metrics["PQ_th"] == pytest.approx(100 * thing / 2) and metrics["PQ_st"] == pytest.approx(100 * stuff)
    assert metrics["SQ"] == pytest.approx(100 * (8 / 12 + 20 / 22) / 3)
    assert metrics["RQ_th"] == pytest.approx(100 * (1 / 1.5) / 2)


def test_a_match_requires_an_iou_above_one_half():
    metrics = measured(strip((1, 10), (0, 10)), segments(s1=THING), strip((0, 5), (1, 5), (0, 10)), segments(s1=THING))
    assert metrics["PQ"] == 0  # IoU 5/10 exactly: one false positive, one false negative
    metrics = measured(strip((1, 11), (0, 9)), segments(s1=THING), strip((0, 5), (1, 6), (0, 9)), segments(s1=THING))
    assert metrics["SQ"] == pytest.approx(100 * 6 / 11)


def test_void_is_not_part_of_the_union():
    # prediction: 8 pixels of thing 1 and 8 of void; the union is 10 + 16 - 8 - 8.
    metrics = measured(strip((1, 10), (0, 10)), segments(s1=THING), strip((0, 2), (1, 16), (0, 2)), segments(s1=THING))
    assert metrics["SQ"] == pytest.approx(80) and metrics["RQ"] == 100


@pytest.mark.parametrize(("inside", "is_counted"), [(6, False), (5, True)])
def test_predictions_with_more_than_half_void_are_ignored(inside, is_counted):
    pred_ids = strip((1, inside), (2, 10 - inside), (2, inside), (0, 10 - inside))
    metrics = measured(strip((1, 10), (0, 10)), segments(s1=THING), pred_ids, segments(s1=THING, s2=OTHER))
    assert (metrics["PQ-other"] == 0) == is_counted and np.isnan(metrics["PQ-other"]) != is_counted


def test_crowds_only_ignore_predictions_of_their_category():
    true_ids = strip((1, 10), (2, 20))
    truth = [{"id": 1, "category_id": STUFF}, {"id": 2, "category_id": THING, "iscrowd": 1}]
    missed = measured(true_ids, truth, strip((1, 10), (0, 20)), segments(s1=STUFF))
    assert missed["PQ"] == 100 and np.isnan(missed["PQ_th"])
    same = measured(true_ids, truth, strip((1, 10), (5, 20)), segments(s1=STUFF, s5=THING))
    assert same["PQ"] == 100 and np.isnan(same["PQ-thing"])
    other = measured(true_ids, truth, strip((1, 10), (5, 20)), segments(s1=STUFF, s5=OTHER))
    assert other["PQ-other"] == 0


def test_counts_are_summed_over_images():
    quality = PanopticQuality(KINDS)
    ids, listed = strip((1, 10)), segments(s1=THING)
    quality.add(ids, listed, ids, listed)
    quality.add(ids, listed, strip((0, 10)), [])
    assert quality.compute()["PQ"] == pytest.approx(100 * 1 / 1.5)  # not the mean over images
    assert quality.num_categories == (1, 1, 0)
    assert all(np.isnan(value) for value in PanopticQuality(KINDS).compute().values())


@pytest.mark.parametrize(
    ("pred_ids", "pred", "message"),
    [
        (strip((1, 9)), segments(s1=THING), r"\(1, 10\) pixels"),
        (strip((1, 5), (4, 5)), segments(s1=THING), r"ids \[4\] are not listed"),
        (strip((1, 10)), segments(s1=THING, s6=THING), r"\[6\] have no pixel"),
        (strip((1, 10)), segments(s1=55), r"categories \[55\]"),
    ],
)
def test_inconsistent_predictions(pred_ids, pred, message):
    with pytest.raises(ValueError, match=message):
        measured(strip((1, 10)), segments(s1=THING), pred_ids, pred)
