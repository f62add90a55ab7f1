"""Rows of the corpus: annotation files."""

from collections.abc import Callable
from typing import Any

from corpus_inputs import (
    BLUE,
    BOXES,
    HEIGHT,
    IMAGES,
    RED,
    WIDTH,
    accept,
    entries,
    error,
    lists,
    options,
    skip,
    together,
    warn,
)

ROOT = {"id": 0, "name": "objects", "supercategory": "none"}
CORNERS = {label: [x, y, x + w, y + h] for label, (x, y, w, h) in enumerate(BOXES.values())}


BOTH = ([0, 1], [[float(value) for value in box] for box in CORNERS.values()])


def targets(*first: Any, others: Any = BOTH, count: int = IMAGES) -> Callable[[Any], None]:
    """Returns a check of the targets: those of the first images, and of the others of ``count``."""

    def check(result: Any) -> None:
        assert sorted(result.targets) == sorted([*first, *[others] * (count - len(first))])

    return check


plain = targets()
ONE = targets(([1], [BOTH[1][1]]))  # without the first object of the first image
AP_WITHOUT_FIRST = 90.0  # one of 5 detections of its class is false, and ranked first


def add(key: str, *new: dict[str, Any]) -> Any:
    """Returns a function that adds entries to a list of the annotation file; missing keys are those of the first."""
    return lambda inputs: inputs.content[key].extend({**inputs.content[key][0], **item} for item in new)


def category_ids(ids: dict[int, Any]) -> Any:
    """Returns a function that changes category ids everywhere."""
    return together(
        entries("annotations", category_id=lambda item: ids.get(item["category_id"], item["category_id"])),
        entries("categories", id=lambda item: ids.get(item["id"], item["id"])),
    )


def normalized(item: dict[str, Any]) -> list[float]:
    x, y, w, h = item["bbox"]
    return [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]


def crowded(count: int) -> Any:
    """Returns a function that adds small objects of one class to the first image."""
    return add("annotations", *({"id": 100 + i, "bbox": [i, 1, 5, 5], "area": 25} for i in range(count)))


IDS = r"annotation ids that are missing, duplicate or not positive 64-bit integers"
INTEGERS = r"integers written as floats or strings \(\d+\)"
AREA = r"annotations whose area is missing or not a positive number \(10\)"

ANNOTATIONS = [
    accept("plain", lambda _: None, plain),
    warn("annotation ids from 0", IDS + r" \(1\)", entries("annotations", id=lambda item: item["id"] - 1), plain),
    warn("negative annotation ids", IDS + r" \(10\)", entries("annotations", id=lambda item: -item["id"]), plain),
    warn("annotation ids above 2**63", IDS, entries("annotations", id=lambda item: 2**63 + item["id"]), plain),
    warn("equal annotation ids", IDS + r" \(9\)", entries("annotations", id=5), plain),
    warn("no annotation ids", IDS + r" \(10\)", entries("annotations", id=...), plain),
    warn("annotation ids that are text", IDS, entries("annotations", id=lambda item: f"a{item['id']}"), plain),
    warn(
        "ids as strings of digits",
        INTEGERS,
        together(
            entries("images", id=lambda item: str(item["id"])),
            entries("annotations", image_id=lambda item: str(item["image_id"])),
            category_ids({RED: "3", BLUE: "7"}),
        ),
        plain,
    ),
    warn(
        "ids as whole floats",
        INTEGERS,
        together(
            entries("images", id=lambda item: float(item["id"])),
            entries("annotations", image_id=lambda item: float(item["image_id"])),
            category_ids({RED: 3.0, BLUE: 7.0}),
        ),
        plain,
    ),
    error(
        "ids that are equal as integers",
        "duplicate category ids",
        add("categories", {"id": "3", "name": "green"}),
    ),
    error(
        "fractional image ids",
        r"annotations with non-integer ids \(10\)",
        entries("annotations", image_id=1.5),
    ),
    error("equal image ids", "duplicate image ids", entries("images", 0, 1, id=1)),
    error(
        "unknown image id",
        r"annotations of images that are not in 'images' \(1\).*image_id 99",
        entries("annotations", 0, image_id=99),
    ),
    error(
        "unknown category id",
        r"annotations whose category_id is not in 'categories' \(1\).*category_id 99(.|\n)*Known ids are 3, 7",
        entries("annotations", 0, category_id=99),
    ),
    accept("category ids in descending order", lambda inputs: inputs.content["categories"].reverse(), plain),
    warn(
        "unused category",
        r"classes without objects, out of 3 \(1\): 'green'",
        add("categories", {"id": 9, "name": "green"}),
        plain,
    ),
    warn(
        "Roboflow's root category",
        r"objects.*DATASETS\.DROP_ROOT_CATEGORY",
        together(
            entries("categories", supercategory="objects"),
            lambda inputs: inputs.content["categories"].insert(0, ROOT),
            lambda inputs: inputs.truth.__setitem__(slice(None), [(k + 1, box) for k, box in inputs.truth]),
        ),
        targets(others=([1, 2], BOTH[1])),
    ),
    accept(
        "Roboflow's root category, dropped",
        together(
            entries("categories", supercategory="objects"),
            lambda inputs: inputs.content["categories"].insert(0, ROOT),
            options("DATASETS.DROP_ROOT_CATEGORY", "True"),
        ),
        plain,
        message="2 classes",
    ),
    warn(
        "two categories of one name",
        r"duplicate category names \(1\): 'red' has the ids 3, 7",
        entries("categories", 1, name="red"),
        plain,
    ),
    error("category name that is a number", "invalid categories", entries("categories", 0, name=5)),
    accept("very long class name", entries("categories", 0, name="r" * 5000), plain),
    accept("class names in Unicode", entries("categories", name=lambda item: f"細胞 {item['id']} ☂"), plain),
    error(
        "another number of classes than configured",
        r"NUM_CLASSES is 5, but data set corpus has 2 categories",
        options("MODEL.DETR.NUM_CLASSES", "5"),
    ),
    error(
        "corners instead of sizes, with areas",
        r"boxes in corner format \[x1, y1, x2, y2\] \(10\)",
        entries("annotations", bbox=lambda item: CORNERS[item["category_id"] == BLUE], segmentation=...),
    ),
    error(
        "corners instead of sizes, with polygons",
        r"boxes in corner format \[x1, y1, x2, y2\] \(10\)",
        entries("annotations", bbox=lambda item: CORNERS[item["category_id"] == BLUE], area=...),
    ),
    error(
        "boxes in normalized coordinates",
        r"boxes in normalized coordinates \(10\)",
        entries("annotations", bbox=normalized),
    ),
    warn(
        "repeated boxes",
        r"duplicate boxes of the same class in an image \(1\)",
        add("annotations", {"id": 100}),
        ap=None,
    ),
    warn(
        "one file as two images",
        r"image files with several entries \(1\): 1\.png has the ids 1, 2",
        entries("images", 1, file_name="1.png"),
    ),
    error(
        "crowds only",
        r"data set without objects \(1\): 0 of 10 annotations are dropped and all others are crowds",
        entries("annotations", iscrowd=1),
    ),
    accept("one crowd", entries("annotations", 0, iscrowd=1), ONE),
    accept("iscrowd true and false", entries("annotations", iscrowd=lambda item: item["id"] == 99), plain),
    error(
        "iscrowd 2",
        r"annotations with an invalid iscrowd or ignore \(10\).*iscrowd 2",
        entries("annotations", iscrowd=2),
    ),
    warn("no iscrowd", r"annotations without iscrowd \(10\)", entries("annotations", iscrowd=...), plain),
    warn("no area", AREA, entries("annotations", area=...), plain),
    warn("area 0", AREA, entries("annotations", area=0), plain),
    warn("negative area", AREA, entries("annotations", area=-5.0), plain),
    warn("area NaN", AREA, entries("annotations", area=float("nan")), plain),
    warn("area that is text", AREA, entries("annotations", area="big"), plain),
    warn("area null", AREA, entries("annotations", area=None), plain),
    warn(
        "area of another unit",
        r"annotations whose area does not match their box \(10\)",
        entries("annotations", area=1e-5),
        plain,
    ),
    error(
        "box of width 0",
        r"boxes without area inside their image \(1\): annotation 1 of 1\.png has bbox(.|\n)*DATASETS",
        entries("annotations", 0, bbox=[30, 20, 0, 32]),
    ),
    skip(
        "box of width 0, dropped",
        r"boxes without area inside their image \(1\).*dropped",
        together(entries("annotations", 0, bbox=[30, 20, 0, 32]), options("DATASETS.INVALID_BOXES", "drop")),
        ONE,
        AP_WITHOUT_FIRST,
    ),
    skip(
        "box outside its image, dropped",
        r"boxes without area inside their image \(1\).*dropped",
        together(entries("annotations", 0, bbox=[300, 20, 24, 32]), options("DATASETS.INVALID_BOXES", "drop")),
        ONE,
        AP_WITHOUT_FIRST,
    ),
    warn(
        "box that leaves its image",
        r"boxes that extend more than a pixel beyond their image \(1\).*They are clipped",
        entries("annotations", 0, bbox=[60, 20, 40, 32]),
        targets(([0, 1], [[60.0, 20.0, 80.0, 52.0], BOTH[1][1]])),
        ap=None,
    ),
    warn(
        "box smaller than a pixel",
        r"boxes smaller than a pixel \(1\)",
        entries("annotations", 0, bbox=[30, 20, 0.5, 0.5], area=0.25),
        targets(([0, 1], [[30.0, 20.0, 30.5, 20.5], BOTH[1][1]])),
        ap=None,
    ),
    error(
        "boxes that leave their images",
        r"boxes without area in their image or extending more than a pixel beyond it, 100% of all",
        entries("annotations", bbox=[60, 20, 40, 32]),
    ),
    error("ignore 1", "annotations with an invalid iscrowd or ignore", entries("annotations", 0, ignore=1)),
    error(
        "boxes of negative width",
        r"boxes with negative width or height \(1\)",
        entries("annotations", 0, bbox=[54, 20, -24, 32]),
    ),
    error(
        "box with NaN",
        r"boxes that are not four finite numbers \(1\)",
        entries("annotations", 0, bbox=[float("nan"), 20, 24, 32]),
    ),
    error(
        "box with Infinity",
        r"boxes that are not four finite numbers \(1\)",
        entries("annotations", 0, bbox=[30, 20, float("inf"), 32]),
    ),
    warn(
        "huge box",
        r"boxes that extend more than a pixel beyond their image \(1\)",
        entries("annotations", 0, bbox=[0, 0, 1e300, 1e300]),
        targets(([0, 1], [[0.0, 0.0, 80.0, 64.0], BOTH[1][1]])),
        ap=None,
    ),
    error(
        "box of three numbers",
        r"boxes that are not four finite numbers \(1\)",
        entries("annotations", 0, bbox=[30, 20, 24]),
    ),
    error(
        "box of text",
        r"boxes that are not four finite numbers \(10\)",
        entries("annotations", bbox=["30", "20", "24", "32"]),
    ),
    error("no bbox", r"annotations with missing keys \(1\).*bbox", entries("annotations", 0, bbox=...)),
    error("annotation that is not an object", "annotations that are not JSON objects", lists(annotations=[5, None])),
]
