"""Draws the detections in the results file of an evaluation; no model is required.

Examples:
  deformable-detr draw --dataset shapes_val --results output/quickstart/inference/coco_instances_results.json \\
    --output pictures --truth
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import catalog
from ..data.records import Array, Record, Summary
from ..errors import Range
from .arguments import add_register_argument, number

if TYPE_CHECKING:
    from ..inference.drawing import Pixels

HELP = "draw the detections of an evaluation"
Detection = dict[str, Any]  # entry of a COCO results file


def draw_record(record: Record, detections: list[Detection], summary: Summary, threshold: float) -> Pixels:
    """Draws detections with scores of at least ``threshold`` on the image of a record."""
    from ..data.images import read_image
    from ..data.masks import decode
    from ..inference.drawing import draw

    kept = [detection for detection in detections if detection["score"] >= threshold]
    ids = {category: index for index, category in enumerate(summary.category_ids)}
    rles = [detection["segmentation"] for detection in kept if "segmentation" in detection]
    return draw(
        read_image(record["file_name"]),
        _corners(kept),
        [ids[detection["category_id"]] for detection in kept],
        [detection["score"] for detection in kept],
        summary.class_names,
        masks=decode(rles, record["height"], record["width"]) if rles else None,
    )


def draw_truth(record: Record, summary: Summary) -> Pixels:
    """Draws the annotated boxes on the image of a record."""
    from ..data.images import read_image
    from ..inference.drawing import draw

    annotations = record["annotations"]
    labels = [item["category_id"] for item in annotations]
    return draw(read_image(record["file_name"]), _corners(annotations), labels, None, summary.class_names)


def _corners(items: list[dict[str, Any]]) -> Array:
    """Returns the boxes of detections or annotations, which are (x, y, w, h), as (x1, y1, x2, y2)."""
    boxes = np.array([item["bbox"] for item in items], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--dataset", required=True, help="name of the data set that was evaluated")
    add_register_argument(parser)
    parser.add_argument("--results", required=True, help="OUTPUT_DIR/inference/coco_instances_results.json")
    parser.add_argument("--output", required=True, type=Path, help="output folder")
    parser.add_argument("--count", type=number(Range(1)), default=12, help="number of images (default: %(default)s)")
    parser.add_argument(
        "--threshold", type=number(Range(0, 1), float), default=0.4, help="minimum score (default: %(default)s)"
    )
    parser.add_argument("--truth", action="store_true", help="draw the annotated boxes on the left of the detections")


def run(args: argparse.Namespace) -> None:
    """Writes one picture per image and a grid of all pictures to ``--output``."""
    from ..data.load import load_dataset
    from ..evaluation.coco import read_results
    from ..inference.drawing import grid, save

    for name, json_file, image_root in args.register:
        catalog.register(name, json_file, image_root)
    # Boxes without area are an error in training, but do not affect the drawn detections.
    records = load_dataset(catalog.get(args.dataset), invalid_boxes="drop_many", for_evaluation=True)
    results = read_results(args.results, records)
    pictures, drawn = [], records[: args.count]
    is_unique = len({Path(name).stem for name in drawn.file_names}) == len(drawn)
    for record in drawn:
        picture = draw_record(record, results.get(record["image_id"], []), records.summary, args.threshold)
        if args.truth:
            picture = grid([draw_truth(record, records.summary), picture])
        stem = Path(record["file_name"]).stem
        # Images in different folders may have the same name.
        save(args.output / f"{stem if is_unique else str(record['image_id']) + '_' + stem}.png", picture)
        pictures.append(picture)
    save(args.output / "grid.png", grid(pictures, columns=2 if args.truth else 4))
    print(f"{len(pictures)} pictures and grid.png are in {args.output}")
    ids = {record["image_id"] for record in drawn}
    best = max((item["score"] for image in ids for item in results.get(image, [])), default=0.0)
    if best < args.threshold:
        print(f"No detection has a score of {args.threshold:g}; the highest is {best:.2f}. Lower --threshold.")
