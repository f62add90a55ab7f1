"""Small COCO files whose content tests can change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from projects_deformable_detr.data.catalog import DatasetSpec


def valid_content() -> dict[str, Any]:
    """Returns three images, the last one without objects; category ids are neither sorted nor contiguous."""
    return {
        "images": [
            {"id": 30, "file_name": "c.png", "width": 40, "height": 30},
            {"id": 10, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 20, "file_name": "deep/b.png", "width": 50, "height": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 9, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 4, "bbox": [30.5, 5, 20, 10], "area": 200, "iscrowd": 0},
            {"id": 3, "image_id": 20, "category_id": 4, "bbox": [0, 0, 50, 20], "area": 1000, "iscrowd": 1},
            {"id": 4, "image_id": 20, "category_id": 7, "bbox": [5, 5, 5, 5], "area": 25, "iscrowd": 0},
        ],
        "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}, {"id": 7, "name": "seven"}],
    }


@pytest.fixture
def content() -> dict[str, Any]:
    return valid_content()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], DatasetSpec]:
    """Returns a function that writes an annotation file; the images of the valid content exist."""
    root = tmp_path / "images"
    for entry in valid_content()["images"]:
        (root / entry["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (entry["width"], entry["height"])).save(root / entry["file_name"])

    def write_content(content: Any) -> DatasetSpec:
        file = tmp_path / "instances.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return DatasetSpec("tiny", file, root)

    return write_content
