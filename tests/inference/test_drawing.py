"""Drawn boxes, masks and grids."""

import numpy as np
import pytest
from PIL import ImageFont

from projects_deformable_detr.data.images import read_image
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.inference.drawing import draw, grid, save

GRAY = np.full((100, 140, 3), 128, np.uint8)
BOXES = [[20, 30, 60, 80], [70, 40, 130, 90]]


def test_small_images_are_enlarged_by_a_whole_factor():
    assert draw(GRAY, [], []).shape == (500, 700, 3)
    assert draw(GRAY, [], [], min_side=100).shape == GRAY.shape
    assert (draw(GRAY, [], []) == 128).all()
    assert draw(GRAY[:2], [], []).shape == (2 * 29, 140 * 29, 3)  # 29 = 4096 // 140
    assert draw(np.zeros((1, 5000, 3), np.uint8), [], []).shape == (1, 5000, 3)


def test_boxes_are_drawn_at_their_coordinates():
    before = GRAY.copy()
    image = draw(GRAY, BOXES, [0, 1], [0.9, 0.5], ["cat", "dog"], min_side=200)
    np.testing.assert_array_equal(GRAY, before)
    for x1, y1, x2, y2 in (np.array(box) * 2 for box in BOXES):
        middle = (y1 + y2) // 2
        assert (image[middle, [x1, x2]] != 128).any(1).all()  # the sides
        assert (image[y2, (x1 + x2) // 2] != 128).any()
        assert (image[middle, (x1 + x2) // 2] == 128).all()  # the inside is unchanged
    assert (image[:30] == 128).all()


def test_classes_have_different_colors_and_scores_different_texts():
    one, other, same = (draw(GRAY, BOXES[:1], [label], class_names=["a"] * 11) for label in (0, 1, 10))
    assert (one != other).any() and (one == same).all()
    low, high = (draw(GRAY, BOXES[:1], [0], [score]) for score in (0.11, 0.88))
    assert (low != high).any()


def test_the_best_box_is_on_top():
    boxes = [[20, 30, 60, 80], [20, 30, 60, 80]]
    top = draw(GRAY, boxes, [0, 1], [0.9, 0.2], ["a", "a"])
    same = draw(GRAY, boxes[::-1], [1, 0], [0.2, 0.9], ["a", "a"])
    np.testing.assert_array_equal(top, same)
    alone = draw(GRAY, boxes[:1], [0], [0.9], ["a"])
    middle, side = 55 * 5, 20 * 5
    np.testing.assert_array_equal(top[middle, side], alone[middle, side])


@pytest.mark.parametrize("box", [[40, 40, 100, 70], [0, 0, 140, 100], [100, 80, 140, 100]])
def test_texts_of_crowded_boxes_do_not_overlap(box):
    def black_pixels(count):
        picture = draw(GRAY, [box] * count, range(count), np.linspace(0.1, 0.9, count), texts=["text"] * count)
        return (picture == 0).all(axis=2).sum()

    assert black_pixels(4) == 4 * black_pixels(1) > 0


@pytest.mark.parametrize("has_fonts", [True, False])
def test_non_ascii_class_names(has_fonts, monkeypatch):
    """Pillow's built-in font would show the same box for each of these letters."""
    letters, open_font = "äéñç", ImageFont.truetype

    def find(font, *arguments, **keywords):
        if isinstance(font, str) and not has_fonts:
            raise OSError("cannot open resource")
        return open_font(font, *arguments, **keywords)

    monkeypatch.setattr(ImageFont, "truetype", find)
    pictures = [draw(GRAY, BOXES[:1], [0], class_names=[letter]).tobytes() for letter in letters]
    assert len(set(pictures)) == len(letters)


@pytest.mark.parametrize("box", [[0, 0, 140, 100], [-50, -50, 400, 400], [139, 99, 140, 100], [0, 0, 1, 1]])
def test_boxes_at_the_border_are_drawn(box):
    name = "a name that is far too long for an image of this size"
    assert (draw(GRAY, [box], [0], [1.0], [name]) != 128).any()


def test_masks_tint_their_pixels():
    image = np.full((40, 50, 3), 100, np.uint8)
    masks = np.zeros((2, 40, 50), bool)
    masks[0, 22:30, 12:30] = masks[1, 26:34, 20:40] = True
    boxes = [[10, 5, 32, 32]] * 2
    plain, tinted = (draw(image, boxes, [1, 2], masks=shown, min_side=80) for shown in (None, masks))
    changed = (plain != tinted).any(2)
    covered = np.kron(masks.any(0), np.ones((2, 2), bool))
    # Box and text are drawn over the masks.
    assert changed[covered].mean() > 0.8 and not changed[~covered].any()
    assert tinted[56, 50].min() > 50  # overlapping masks are not black


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((GRAY, BOXES, [0]), "2 boxes, 1 labels"),
        ((GRAY, BOXES, [0, 1], [1, 1, 1]), "3 scores"),
        ((GRAY / 255, [], []), "float"),
    ],
)
def test_invalid_arguments(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        draw(*arguments)


def test_a_grid_has_every_image_in_its_cell():
    images = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20)] + [np.full((6, 8, 3), 30, np.uint8)]
    sheet = grid(images, columns=2, gap=4)
    assert sheet.shape == (2 * 14 + 4, 2 * 24 + 4, 3)
    assert (sheet[4:14, 4:24] == 10).all() and (sheet[4:14, 28:48] == 20).all()
    assert (sheet[20:26, 10:18] == 30).all()  # centered
    assert (sheet == 255).sum() == sheet.size - sum(image.size for image in images)
    with pytest.raises(ValueError, match="0 images"):
        grid([])


def test_saving(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    save(tmp_path / "new" / "sheet.png", grid([image]))
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "sheet.png"), image)
    for name in ("sheet.what", "sheet"):
        with pytest.raises(UserError, match=r"\.png"):
            save(tmp_path / name, image)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save(tmp_path / "file" / "sheet.png", image)
