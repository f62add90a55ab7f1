"""Shapes data set: reproducible, consistent with its masks, and in COCO's format."""

import collections
import contextlib
import hashlib
import io
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from projects_deformable_detr.cli.main import main
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.images import read_image
from projects_deformable_detr.data.load import load_dataset
from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.shapes import dataset as shapes
from projects_deformable_detr.shapes.polygons import mask_to_polygons
from projects_deformable_detr.shapes.scene import CLASS_NAMES, FINE, MIN_VISIBLE, SHAPES

SIZE = (96, 128)
# pycocotools passes its RLE objects to NumPy through a deprecated interface.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def scenes():
    return [shapes.make_scene(0, "train", index, SIZE) for index in range(40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    shapes.generate(root, num_train=12, num_val=5, size=SIZE, seed=3)
    return root


def spec(root, split):
    return DatasetSpec(f"shapes_{split}", root / f"annotations/instances_{split}.json", root / split)


def decoded(polygons, height, width):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


@pytest.mark.parametrize("split", ["train", "val"])
def test_files_pass_all_checks(made, split):
    records = load_dataset(spec(made, split), max_objects=10, for_evaluation=True)
    summary = records.summary
    assert summary.class_names == CLASS_NAMES and summary.category_ids == (1, 2, 3, 4, 5, 6)
    assert summary.num_images == {"train": 12, "val": 5}[split]
    assert (summary.dropped, summary.clipped, summary.num_crowd) == (0, 0, 0)
    for record in records:
        image = read_image(record["file_name"], expected_size=(record["height"], record["width"]))
        assert SIZE[0] <= min(image.shape[:2]) and max(image.shape[:2]) <= SIZE[1]
    with contextlib.redirect_stdout(io.StringIO()):
        assert len(COCO(str(spec(made, split).json_file)).getAnnIds()) == summary.num_annotations


def test_files_depend_on_seed_and_index_only(made, tmp_path):
    shapes.generate(tmp_path, num_train=15, num_val=0, size=SIZE, seed=3)
    for index in range(1, 13):
        assert (tmp_path / f"train/{index:06d}.jpg").read_bytes() == (made / f"train/{index:06d}.jpg").read_bytes()
    short, long = (json.loads(spec(root, "train").json_file.read_text()) for root in (made, tmp_path))
    assert long["images"][:12] == short["images"]
    assert long["annotations"][: len(short["annotations"])] == short["annotations"]
    assert not (tmp_path / "val").exists()


def test_splits_seeds_and_images_differ(made):
    keys = [(0, "train", 0), (0, "train", 1), (0, "val", 0), (1, "train", 0)]
    assert len({shapes.make_scene(*key, SIZE).image.tobytes() for key in keys}) == len(keys)
    train, val = (
        {hashlib.sha256(file.read_bytes()).digest() for file in (made / s).iterdir()} for s in ("train", "val")
    )
    assert len(train) == 12 and len(val) == 5 and not train & val


def test_known_scene():
    """A seed gives the same scene on every machine; increment shapes.VERSION if this changes on purpose."""
    scene = shapes.make_scene(0, "train", 0, (128, 160))
    assert scene.image.shape == (149, 136, 3)
    assert scene.image.mean() == pytest.approx(145.9585, abs=0.05)
    found = [(item["category_id"], item["bbox"], item["area"]) for item in shapes.annotate(scene)]
    assert [category for category, _, _ in found] == [6, 4, 6]
    boxes = [[2.5, 114.0, 42.75, 29.25], [0.0, 1.0, 19.75, 34.0], [88.75, 52.5, 9.75, 11.0]]
    np.testing.assert_allclose([box for _, box, _ in found], boxes, atol=0.26)  # a mask pixel
    np.testing.assert_allclose([area for _, _, area in found], [634.875, 283.375, 59.1875], rtol=0.02)


def test_boxes_areas_and_polygons_match_the_masks(scenes):
    for scene in scenes:
        height, width = scene.image.shape[:2]
        for item, annotation in zip(scene.objects, shapes.annotate(scene), strict=True):
            fine = scene.owners == item.index
            rows, columns = (np.flatnonzero(fine.any(axis)) for axis in (1, 0))
            edges = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
            assert annotation["bbox"] == [edge / FINE for edge in edges]
            assert annotation["area"] == fine.sum() / FINE**2
            enlarged = [(np.array(polygon) * FINE).tolist() for polygon in annotation["segmentation"]]
            polygons = decoded(enlarged, height * FINE, width * FINE)
            assert (polygons & fine).sum() / (polygons | fine).sum() > 0.93
            assert abs(polygons.sum() / fine.sum() - 1) < 0.05
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in annotation["segmentation"]])
            x, y, w, h = annotation["bbox"]
            np.testing.assert_allclose([*points.min(0), *points.max(0)], [x, y, x + w, y + h], atol=0.5)


def test_shapes_are_mostly_visible(scenes):
    covered = 0
    for scene in scenes:
        assert [item.index for item in scene.objects] == list(range(1, len(scene.objects) + 1))
        assert set(np.unique(scene.owners)) - {0} == {item.index for item in scene.objects}
        assert all(MIN_VISIBLE <= item.visible <= 1 for item in scene.objects)
        covered += sum(item.visible < 0.97 for item in scene.objects)
    assert covered > 40  # partly covered, or partly outside the image


def test_scenes_are_varied(scenes):
    annotations = [item for scene in scenes for item in shapes.annotate(scene)]
    classes = collections.Counter(item["category_id"] for item in annotations)
    assert len(classes) == len(CLASS_NAMES) and min(classes.values()) > len(annotations) / 12
    longest = np.array([max(item["bbox"][2:]) for item in annotations])
    assert 4 < longest.min() < 9 and longest.max() > 60
    assert (longest < 12).mean() > 0.05 and 18 < np.median(longest) < 40
    counts = [len(scene.objects) for scene in scenes]
    assert min(counts) <= 4 and max(counts) >= 9 and max(counts) <= 10


def test_shapes_differ_in_color_from_their_surroundings(scenes):
    faint = total = 0
    for scene in scenes:
        owners = scene.owners[FINE // 2 :: FINE, FINE // 2 :: FINE]
        for item in scene.objects:
            inside = (owners == item.index).astype(np.uint8)
            around = (cv2.dilate(inside, np.ones((7, 7), np.uint8)) > 0) & (owners == 0)
            if inside.sum() >= 12 and around.sum() >= 12:
                difference = np.median(scene.image[inside > 0], axis=0) - np.median(scene.image[around], axis=0)
                faint += np.abs(difference).sum() < 45
                total += 1
    assert total > 150 and faint / total < 0.05


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_outlines_have_unit_size(name):
    points = np.concatenate(SHAPES[name])
    assert np.abs(points).max() <= 1.1 and np.ptp(points, axis=0).min() > 1.5


def test_polygons_keep_holes_and_parts():
    mask = np.zeros((40, 60), np.uint8)
    cv2.circle(mask, (20, 20), 15, 1, -1)
    cv2.circle(mask, (15, 20), 4, 0, -1)
    cv2.circle(mask, (26, 20), 4, 0, -1)
    mask[10:30, 45:55] = 1
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 2  # a disc with two holes, a rectangle
    np.testing.assert_array_equal(decoded(polygons, 40, 60), mask > 0)
    assert mask_to_polygons(np.zeros((5, 5), np.uint8)) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": 16}, "size must be at least 32"),
        ({"size": (160, 128)}, "the minimum first, got 160 to 128"),
        ({"num_train": -1}, "num_train must be at least 0, got -1"),
        ({"seed": -5}, "seed must be at least 0, got -5"),
    ],
)
def test_arguments_out_of_range(tmp_path, change, expected):
    with pytest.raises(ArgumentError, match=expected):
        shapes.generate(tmp_path / "out", **({"num_train": 1, "num_val": 1} | change))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file"):
        shapes.generate(tmp_path / "file", num_train=1, num_val=1)


def test_interrupted_run_leaves_no_annotations(made, tmp_path, monkeypatch):
    shapes.generate(tmp_path, num_train=2, num_val=0, size=64)
    calls = iter([None])

    def interrupted(*arguments):
        if next(calls, "stop") == "stop":
            raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_write_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path, num_train=2, num_val=0, size=64, seed=1)
    assert list((tmp_path / "annotations").iterdir()) == []


def test_command_line(tmp_path, capsys):
    line = ["shapes", "--out", str(tmp_path), "--train", "2", "--val", "1", "--size", "64", "--seed", "9"]
    assert main(line) == 0
    assert str(tmp_path) in capsys.readouterr().out
    content = json.loads(spec(tmp_path, "train").json_file.read_text())
    assert {(image["height"], image["width"]) for image in content["images"]} == {(64, 64)}
    assert content["info"]["seed"] == 9 and len(list((tmp_path / "train").iterdir())) == 2
    line = ["shapes", "--output", str(tmp_path / "other"), "--size"]
    assert main([*line, "64", "96", "128"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main([*line, "8"])
    assert "--size: must be at least 32, got 8" in capsys.readouterr().err
