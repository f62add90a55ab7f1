"""Run-length encoded masks: wrong lengths are rejected, because pycocotools hangs or reads other memory for them."""

import numpy as np
import pytest
from pycocotools import mask as rle_format

from projects_deformable_detr.data.masks import decode, find_rle_fault, to_rle
from projects_deformable_detr.data.problems import DatasetError


def random_masks(count):
    rng = np.random.default_rng(0)
    for index in range(count):
        mask = rng.random(rng.integers(1, 60, 2)) < rng.random()
        if index % 3 == 0:  # long runs
            mask[:] = index % 2
            mask[mask.shape[0] // 3 :, mask.shape[1] // 4 :] = 1
        yield mask


def test_counts_of_masks_are_accepted_and_truncated_ones_are_not():
    for mask in random_masks(60):
        height, width = mask.shape
        counts = rle_format.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert find_rle_fault([height, width], counts, height, width) is None
        assert find_rle_fault([height, width], counts.decode(), height, width) is None
        assert find_rle_fault([width + height, width], counts, height, width)
        assert all(find_rle_fault([height, width], counts[:end], height, width) for end in range(len(counts)))


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        ("", "0 pixels, not 12"),
        ([], "0 pixels, not 12"),
        ([12, 5], "17 pixels"),
        ("<<", "24 pixels"),
        ("<" + "O" * 3, "negative"),
        ("P", "truncated"),
        ("é", "characters"),
        ("12 3", "characters"),
        ("ooooooooooooo0", "not run lengths of an image"),
    ],
)
def test_wrong_counts(counts, fault):
    assert fault in (find_rle_fault((3, 4), counts, 3, 4) or "")
    with pytest.raises(DatasetError, match="object 7 has an RLE .*correct or remove"):
        to_rle({"size": [3, 4], "counts": counts}, 3, 4, "object 7")


@pytest.mark.parametrize("counts", [[4, 3, 5], "435", b"435", [0, 12], "0<", [12], "<"])
def test_accepted_counts(counts):
    (mask,) = decode([to_rle({"size": [3, 4], "counts": counts}, 3, 4, "object 7")], 3, 4)
    runs = {"<": [12], "0<": [0, 12]}.get(counts, [4, 3, 5]) if not isinstance(counts, list) else counts
    expected = np.concatenate([np.full(run, index % 2) for index, run in enumerate(runs)])
    np.testing.assert_array_equal(mask.ravel("F"), expected)
