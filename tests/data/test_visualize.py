"""Drawn boxes and grids."""

import numpy as np
import pytest

from projects_deformable_detr.data.images import read_image
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.inference import drawing as visualize

GREY = np.full((100, 140, 3), 128, np.uint8)
BOXES = [[20, 30, 60, 80], [70, 40, 130, 90]]


def test_small_images_are_enlarged_by_a_whole_factor():
    assert visualize.draw(GREY, [], []).shape == (500, 700, 3)
    assert visualize.draw(GREY, [], [], min_side=100).shape == GREY.shape
    assert (visualize.draw(GREY, [], []) == 128).all()


def test_boxes_are_drawn_where_they_are():
    before = GREY.copy()
    image = visualize.draw(GREY, BOXES, [0, 1], [0.9, 0.5], ["cat", "dog"], min_side=200)
    np.testing.assert_array_equal(GREY, before)
    for x1, y1, x2, y2 in (np.array(box) * 2 for box in BOXES):
        middle = (y1 + y2) // 2
        assert (image[middle, [x1, x2]] != 128).any(1).all()  # the sides
        assert (image[y2, (x1 + x2) // 2] != 128).any()
        assert (image[middle, (x1 + x2) // 2] == 128).all()  # and nothing between
    assert (image[:30] == 128).all()


def test_classes_have_their_colours_and_texts_their_scores():
    one, other = (visualize.draw(GREY, BOXES[:1], [label]) for label in (0, 1))
    assert (one != other).any()
    low, high = (visualize.draw(GREY, BOXES[:1], [0], [score]) for score in (0.11, 0.88))
    assert (low != high).any()


def test_the_best_box_is_on_top():
    boxes = [[20, 30, 60, 80], [20, 30, 60, 80]]
    top = visualize.draw(GREY, boxes, [0, 1], [0.9, 0.2], ["a", "a"])
    same = visualize.draw(GREY, boxes[::-1], [1, 0], [0.2, 0.9], ["a", "a"])
    np.testing.assert_array_equal(top, same)
    alone = visualize.draw(GREY, boxes[:1], [0], [0.9], ["a"])
    middle, side = 55 * 5, 20 * 5
    np.testing.assert_array_equal(top[middle, side], alone[middle, side])


@pytest.mark.parametrize("box", [[0, 0, 140, 100], [-50, -50, 400, 400], [139, 99, 140, 100], [0, 0, 1, 1]])
def test_boxes_at_the_border_are_drawn(box):
    assert (
        visualize.draw(GREY, [box], [0], [1.0], ["a name that is far too long for an image of this size"]) != 128
    ).any()


def test_unusable_input():
    with pytest.raises(ValueError, match="2 boxes, 1 labels"):
        visualize.draw(GREY, BOXES, [0])
    with pytest.raises(ValueError, match="3 scores"):
        visualize.draw(GREY, BOXES, [0, 1], [1, 1, 1])
    with pytest.raises(ValueError, match="float"):
        visualize.draw(GREY / 255, [], [])
    with pytest.raises(ValueError, match="0 images"):
        visualize.grid([])


def test_a_grid_has_every_image_in_its_cell():
    images = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20)] + [np.full((6, 8, 3), 30, np.uint8)]
    sheet = visualize.grid(images, columns=2, gap=4)
    assert sheet.shape == (2 * 14 + 4, 2 * 24 + 4, 3)
    assert (sheet[4:14, 4:24] == 10).all() and (sheet[4:14, 28:48] == 20).all()
    assert (sheet[20:26, 10:18] == 30).all()  # centred
    assert (sheet == 255).sum() == sheet.size - sum(image.size for image in images)


def test_saving(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    visualize.save_grid(tmp_path / "new" / "sheet.png", [image], gap=0)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "sheet.png"), image)
    for name in ("sheet.what", "sheet"):
        with pytest.raises(UserError, match=r"\.png"):
            visualize.save(tmp_path / name, image)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        visualize.save(tmp_path / "file" / "sheet.png", image)


def test_masks_tint_what_they_cover():
    image = np.full((40, 50, 3), 100, np.uint8)
    masks = np.zeros((1, 40, 50), bool)
    masks[0, 22:30, 12:30] = True
    plain, tinted = (visualize.draw(image, [[10, 5, 32, 32]], [1], masks=shown, min_side=80) for shown in (None, masks))
    changed = (plain != tinted).any(2)
    covered = np.kron(masks[0], np.ones((2, 2), bool))
    assert changed[covered].all() and not changed[~covered].any()
