"""Rows of the corpus: LVIS and panoptic files, and data sets that only Detectron2 reads."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from corpus_annotations import plain
from corpus_inputs import BLUE, RED, Change, Inputs, accept, entries, error, options, text, together, warn

from projects_deformable_detr.shapes.dataset import generate

AS_LVIS = together(
    entries("images", neg_category_ids=[], not_exhaustive_category_ids=[]),
    entries("categories", frequency="f"),
    options("DATASETS.TEST", "()"),
)
NOT_LISTED = r"ids in 'neg_category_ids' that are not in 'categories' \(1\)"
LVIS = [
    accept("LVIS file", lambda _: None, plain, ap=None),
    warn(
        "ids as strings",
        r"integers written as floats or strings \(4\)",
        together(
            lambda inputs: inputs.content["annotations"].pop(0),
            entries("images", 0, neg_category_ids=[str(RED), float(RED)]),
            entries("categories", id=lambda item: str(item["id"])),
        ),
        ap=None,
    ),
    error("truncated", "is not JSON", text(lambda content: content[:-200])),
    error(
        "number instead of a list",
        r"images without a list 'neg_category_ids' \(1\)",
        entries("images", 0, neg_category_ids=3),
    ),
    error(
        "missing list",
        r"images without a list 'not_exhaustive_category_ids' \(1\)",
        entries("images", 0, not_exhaustive_category_ids=...),
    ),
    error("negative id", NOT_LISTED, entries("images", 0, neg_category_ids=[-RED])),
    error("huge id", NOT_LISTED, entries("images", 0, neg_category_ids=[10**30])),
    error(
        "objects of an absent class",
        r"images with objects of classes in 'neg_category_ids' \(1\)",
        entries("images", 0, neg_category_ids=[BLUE]),
    ),
    error("no frequency", r"categories without a valid frequency \(2\)", entries("categories", frequency=3)),
    error("invalid URL", r"images with an invalid 'coco_url' \(1\)", entries("images", 0, coco_url="file")),
]


def panoptic(change: Callable[[Any], Any] = lambda content: None, damage: Change = lambda _: None) -> Change:
    """Returns a function that trains on a small panoptic data set, shapes_train_panoptic.

    Args:
        change: changes the content of its file in place, or returns other content.
        damage: called with the inputs after all files were written.
    """

    def apply(inputs: Inputs) -> None:
        root = inputs.folder / "datasets" / "shapes"
        generate(root, num_train=2, num_val=0, size=64)
        path = root / "annotations" / "panoptic_train.json"
        content = json.loads(path.read_bytes())
        new = change(content)
        path.write_bytes(new if isinstance(new, bytes) else json.dumps(content if new is None else new).encode())
        inputs.environment["DETECTRON2_DATASETS"] = str(root.parent)
        inputs.options += ["DATASETS.TRAIN", "shapes_train_panoptic", "DATASETS.TEST", "()"]
        inputs.options += ["SOLVER.IMS_PER_BATCH", 2, "MODEL.DETR.NUM_OBJECT_QUERIES", 30]
        damage(inputs)

    return apply


def annotation(**values: Any) -> Change:
    """Returns a panoptic input whose first annotation is changed."""
    return panoptic(lambda content: content["annotations"][0].update(values))


def segment(**values: Any) -> Change:
    """Returns a panoptic input whose first segment is changed."""
    return panoptic(lambda content: content["annotations"][0]["segments_info"][0].update(values))


def png(change: Callable[[bytes], bytes | None]) -> Change:
    """Returns a panoptic input whose first PNG is changed; None removes it."""

    def damage(inputs: Inputs) -> None:
        path = min((inputs.folder / "datasets" / "shapes" / "panoptic_train").iterdir())
        content = change(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)

    return panoptic(damage=damage)


def repeat(content: Any) -> None:
    content["annotations"].append(content["annotations"][0])


def without_annotation(content: Any) -> None:
    del content["annotations"][0]


def without_segments(content: Any) -> None:
    del content["annotations"][0]["segments_info"]


def with_text_ids(content: Any) -> None:
    for item in content["annotations"][0]["segments_info"]:
        item["id"] = str(item["id"])


INVALID = r"invalid annotations \(1\)"
INVALID_SEGMENTS = r"invalid segments \(1\)"
PANOPTIC = [
    accept("panoptic file", panoptic(), ap=None),
    warn("segment ids as strings", "integers written as floats or strings", panoptic(with_text_ids), ap=None),
    error("truncated", "is not JSON", panoptic(lambda content: json.dumps(content).encode()[:-200])),
    error("list", "contains a list", panoptic(lambda content: [content])),
    error("no list of segments", INVALID, panoptic(without_segments)),
    error("segments that are an object", INVALID, annotation(segments_info={})),
    error("segment that is a number", INVALID_SEGMENTS, annotation(segments_info=[7])),
    error("segment id 0", INVALID_SEGMENTS, segment(id=0)),
    error("negative segment id", INVALID_SEGMENTS, segment(id=-3)),
    error("huge segment id", INVALID_SEGMENTS, segment(id=2**24)),
    error("segment without a pixel", r"has no pixels of segment 9999", segment(id=9999)),
    error("negative category id", r"segments whose category_id is not in 'categories' \(1\)", segment(category_id=-1)),
    error("iscrowd 2", INVALID_SEGMENTS, segment(iscrowd=2)),
    error("isthing that is text", "isthing", panoptic(lambda content: content["categories"][0].update(isthing="yes"))),
    error("image annotated twice", r"images with several annotations \(1\)", panoptic(repeat)),
    error("no annotation", r"images without an annotation \(1\)", panoptic(without_annotation)),
    error("missing PNG", r"missing panoptic PNGs \(1\)", png(lambda content: None)),
    error("truncated PNG", r"image files that cannot be read \(1\)", png(lambda content: content[:-30])),
]


def function(change: Callable[[list[dict[str, Any]]], object] = lambda records: None) -> Change:
    """Returns a function that trains and evaluates on records that a function in Detectron2's catalog returns.

    Args:
        change: changes the records in place.
    """

    def apply(inputs: Inputs) -> None:
        content = inputs.content
        labels = {category["id"]: label for label, category in enumerate(content["categories"])}
        records = []
        for image in content["images"]:
            items = [
                {"bbox": item["bbox"], "bbox_mode": 1, "category_id": labels[item["category_id"]], "iscrowd": 0}
                for item in content["annotations"]
                if item["image_id"] == image["id"]
            ]
            size = {"height": image["height"], "width": image["width"], "image_id": image["id"]}
            records.append({"file_name": str(inputs.image_root / image["file_name"]), **size, "annotations": items})
        change(records)
        inputs.function = lambda: records
        inputs.options += ["DATASETS.TRAIN", "corpus_function", "DATASETS.TEST", "corpus_function"]

    return apply


def first(**values: Any) -> Change:
    """Returns records whose first annotation is changed."""
    return function(lambda records: records[0]["annotations"][0].update(values))


def without_names(records: list[dict[str, Any]]) -> None:
    for record in records:
        del record["file_name"]


def without_mode(records: list[dict[str, Any]]) -> None:
    del records[0]["annotations"][0]["bbox_mode"]


NOT_FOUR = r"boxes that are not four finite numbers \(1\)"
FUNCTIONS = [
    accept("records", function(), plain),
    error("records without file names", r"records without a file_name \(5\)", function(without_names)),
    error("record that is text", r"records without a file_name \(1\)", function(lambda found: found.append("image"))),
    error(
        "missing file", r"files that cannot be read \(1\)", function(lambda found: found[0].update(file_name="x.png"))
    ),
    error("box of three numbers", NOT_FOUR, first(bbox=[1, 2, 3])),
    error("box with NaN", NOT_FOUR, first(bbox=[1, 2, float("nan"), 3])),
    error("class that does not exist", r"category_ids that are not valid class ids \(1\)", first(category_id=9)),
    error("no bbox_mode", r"annotations that lack keys \(1\)", function(without_mode)),
]
FORMATS = [
    *(replace(case, name=f"LVIS: {case.name}", make=together(AS_LVIS, case.make)) for case in LVIS),
    *(replace(case, name=f"panoptic: {case.name}") for case in PANOPTIC),
    *(replace(case, name=f"function: {case.name}", engines=("detectron2",)) for case in FUNCTIONS),
]
