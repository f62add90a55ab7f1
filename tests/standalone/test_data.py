"""Transformed images and targets, and batches of them."""

import builtins
import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from projects_deformable_detr.data.images import ImageReader, resize_shortest_edge
from projects_deformable_detr.standalone import main
from projects_deformable_detr.standalone.augment import augment
from projects_deformable_detr.standalone.batch import collate
from projects_deformable_detr.standalone.data import DetectionDataset
from projects_deformable_detr.training import AugmentationPolicy

RED = (250, 10, 10)


def policy(**changes: Any) -> AugmentationPolicy:
    values = dict(flip_prob=0.0, min_sizes=(60,), max_size=200, crop_prob=0.0, crop_resize=(50, 70))
    return AugmentationPolicy(**{**values, "crop_range": (30, 50), **changes})


def scene(height: int = 80, width: int = 120) -> tuple[Image.Image, torch.Tensor]:
    """Returns an image of a red box, off the center, and its corners (1, 4)."""
    pixels = np.full((height, width, 3), 100, np.uint8)
    pixels[20:50, 30:90] = RED
    return Image.fromarray(pixels), torch.tensor([[30.0, 20.0, 90.0, 50.0]])


def red_corners(image: Image.Image) -> list[int]:
    pixels = np.asarray(image).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] - pixels[..., 1]) > 75)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_transformed_with_the_image(seed: int) -> None:
    image, corners = scene()
    boxes = BoundingBoxes(corners, format=BoundingBoxFormat.XYXY, canvas_size=(80, 120))
    everything = policy(flip_prob=0.5, crop_prob=0.5, min_sizes=(48, 64, 96))
    image, boxes, _ = augment(image, boxes, everything, np.random.default_rng(seed))
    assert boxes.canvas_size == (image.height, image.width)
    found = boxes.as_subclass(torch.Tensor)[0]
    if (found[2:] - found[:2]).min() > 2:  # otherwise the object is outside the crop
        assert found.tolist() == pytest.approx(red_corners(image), abs=1.6)


def test_policy_without_flip_and_crop_only_resizes() -> None:
    image, corners = scene()
    boxes = BoundingBoxes(corners, format=BoundingBoxFormat.XYXY, canvas_size=(80, 120))
    image, boxes, _ = augment(image, boxes, policy(), np.random.default_rng(0))
    assert (image.height, image.width) == (60, 90)
    assert boxes.tolist() == [[22.5, 15.0, 67.5, 37.5]]


@pytest.mark.parametrize(
    ("size", "shorter", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((300, 1000), 800, 1333, (400, 1333)),
        ((37, 53), 0, 1333, (37, 53)),
        ((100, 100), 50, None, (50, 50)),
    ],
)
def test_resize_shortest_edge(
    size: tuple[int, int], shorter: int, longest: int | None, expected: tuple[int, int]
) -> None:
    assert resize_shortest_edge(*size, shorter, longest) == expected


def test_sizes_match_detectron2() -> None:
    transforms = pytest.importorskip("detectron2.data.transforms", reason="compares with Detectron2's sizes")
    rng = np.random.default_rng(0)
    for height, width, shorter in rng.integers(20, 900, (500, 3)).tolist():
        expected = transforms.ResizeShortestEdge.get_output_shape(height, width, shorter, 700)
        assert resize_shortest_edge(height, width, shorter, 700) == expected


def test_evaluation_pixels_match_detectron2() -> None:
    transforms = pytest.importorskip("detectron2.data.transforms", reason="compares with Detectron2's resize")
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    expected = transforms.ResizeShortestEdge((40, 40), 50).get_transform(pixels).apply_image(pixels)
    boxes = BoundingBoxes(torch.zeros(0, 4), format=BoundingBoxFormat.XYXY, canvas_size=(61, 83))
    found, _, _ = augment(
        Image.fromarray(pixels), boxes, policy(min_sizes=(40,), max_size=50), np.random.default_rng(0)
    )
    assert np.array_equal(np.asarray(found), expected)


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    image, _ = scene()
    found = []
    for image_id in range(2):
        path = tmp_path / f"{image_id}.png"
        image.save(path)
        objects = [
            {"bbox": [30, 20, 60, 30], "category_id": 4, "iscrowd": 0},
            {"bbox": [0, 0, 10, 10], "category_id": 1, "iscrowd": 1},
        ]
        size = {"height": 80, "width": 120}
        found.append({"file_name": str(path), "image_id": image_id, "annotations": objects, **size})
    found[1]["annotations"] = []
    return found


def test_items_and_batches(records: list[dict[str, Any]]) -> None:
    data = DetectionDataset(records, policy())
    batch = collate([data[(0, 0)], data[(1, 1)]])
    assert batch.images.shape == (2, 3, 60, 90)
    assert batch.images.dtype == torch.uint8
    assert not batch.padding_mask.any()
    first, second = batch.targets
    assert first.labels.tolist() == [4]  # without the crowd
    assert first.boxes.tolist() == [pytest.approx([0.5, 0.4375, 0.5, 0.375])]
    assert second.boxes.shape == (0, 4)
    assert (batch.image_ids, batch.original_sizes) == ([0, 1], [(80, 120)] * 2)


def test_smaller_images_are_padded(records: list[dict[str, Any]]) -> None:
    small, large = (DetectionDataset(records, policy(min_sizes=(size,)))[(0, 0)] for size in (40, 60))
    batch = collate([small, large])
    assert batch.padding_mask.sum((1, 2)).tolist() == [60 * 90 - 40 * 60, 0]
    assert batch.images[0, :, 40:].sum() == 0


def test_transforms_depend_on_seed_and_position_only(records: list[dict[str, Any]]) -> None:
    everything = policy(flip_prob=0.5, crop_prob=0.5, min_sizes=(48, 64, 96))
    data = DetectionDataset(records, everything, seed=1)
    later = [data[(position, 0)].pixels for position in (5, 6, 7, 8)]
    torch.manual_seed(99)
    again = [DetectionDataset(records, everything, seed=1)[(position, 0)].pixels for position in (8, 7, 6, 5)]
    assert all(torch.equal(a, b) for a, b in zip(later, again[::-1], strict=True))
    assert len({pixels.shape for pixels in later}) > 1


def test_channel_order(records: list[dict[str, Any]]) -> None:
    rgb = DetectionDataset(records, policy())[(0, 0)].pixels
    bgr = DetectionDataset(records, policy(), reader=ImageReader("BGR"))[(0, 0)].pixels
    assert rgb[:, 25, 45].tolist() == list(RED)
    assert torch.equal(bgr, rgb.flip(0))


def test_a_run_decodes_each_annotation_file_once(
    make_args: Callable[..., Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = make_args(tmp_path / "output", "SOLVER.MAX_ITER", 1)
    files = {}
    for index, (name, json_file, image_root) in enumerate(args.register):
        files[name] = tmp_path / f"{index}.json"  # not in the cache yet
        files[name].write_bytes(Path(json_file).read_bytes())
        args.register[index] = (f"{name}_copy", str(files[name]), image_root)
    args.opts += ["DATASETS.TRAIN", "('tiny_train_copy',)", "DATASETS.TEST", "('tiny_val_copy',)"]
    read: list[str] = []
    open_file = io.open
    monkeypatch.setattr(
        io, "open", lambda file, *rest, **options: read.append(str(file)) or open_file(file, *rest, **options)
    )
    monkeypatch.setattr(builtins, "open", io.open)
    main(args)
    assert [read.count(str(file)) for file in files.values()] == [1] * len(files)


@pytest.mark.parametrize("size", [(1, 1), (9000, 1), (1, 9000)])
def test_extreme_shapes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "thin.png")
    item = {"bbox": [0, 0, *size], "category_id": 0}
    record = {"file_name": str(tmp_path / "thin.png"), "width": size[0], "height": size[1], "image_id": 1}
    data = DetectionDataset([{**record, "annotations": [item]}], policy(crop_prob=1.0, flip_prob=1.0))
    assert all(1 <= side <= 200 for position in range(4) for side in data[(position, 0)].pixels.shape[1:])
