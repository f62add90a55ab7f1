"""Draws the detections in the results file of an evaluation; no model is required.

Examples:
  deformable-detr draw --dataset shapes_val --results output/quickstart/inference/coco_instances_results.json \\
    --out pictures --truth
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import catalog
from ..data.records import Record, Summary
from ..errors import UserError
from .arguments import add_register_argument

if TYPE_CHECKING:
    from ..inference.drawing import Pixels

HELP = "draw the detections of an evaluation"
_KEYS = ("category_id", "bbox", "score")
Detection = dict[str, Any]  # entry of a COCO results file


def read_results(path: str | Path) -> dict[Any, list[Detection]]:
    """Returns the detections of a COCO results file by image id; raises `UserError` for an invalid file."""
    by_image: dict[Any, list[Detection]] = defaultdict(list)
    try:
        for result in json.loads(Path(path).read_text()):
            hash(result["category_id"])  # TypeError for lists
            by_image[result["image_id"]].append({key: result[key] for key in _KEYS} | result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a COCO results file ({error}); evaluate first, with --eval-only") from error
    return by_image


def draw_record(record: Record, detections: list[Detection], summary: Summary, threshold: float) -> Pixels:
    """Draws detections with scores of at least ``threshold`` on the image of a record."""
    from ..data.images import read_image
    from ..data.masks import decode
    from ..inference.drawing import draw

    kept = [detection for detection in detections if detection["score"] >= threshold]
    ids = {category: index for index, category in enumerate(summary.category_ids)}
    boxes = np.array([detection["bbox"] for detection in kept], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    rles = [detection["segmentation"] for detection in kept if "segmentation" in detection]
    return draw(
        read_image(record["file_name"]),
        boxes,
        [ids[detection["category_id"]] for detection in kept],
        [detection["score"] for detection in kept],
        summary.class_names,
        masks=decode(rles, record["height"], record["width"]) if rles else None,
    )


def draw_truth(record: Record, summary: Summary) -> Pixels:
    """Draws the annotated boxes on the image of a record."""
    from ..data.images import read_image
    from ..inference.drawing import draw

    boxes = [item["bbox"] for item in record["annotations"]]
    labels = [item["category_id"] for item in record["annotations"]]
    return draw(read_image(record["file_name"]), boxes, labels, None, summary.class_names)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--dataset", required=True, help="name of the data set that was evaluated")
    add_register_argument(parser)
    parser.add_argument("--results", required=True, help="OUTPUT_DIR/inference/coco_instances_results.json")
    parser.add_argument("--out", required=True, type=Path, help="output folder")
    parser.add_argument("--count", type=int, default=12, help="number of images (default: 12)")
    parser.add_argument("--threshold", type=float, default=0.4, help="minimum score, in [0, 1] (default: 0.4)")
    parser.add_argument("--truth", action="store_true", help="draw the annotated boxes on the left of the detections")


def run(args: argparse.Namespace) -> None:
    """Writes one picture per image and a grid of all pictures to ``--out``."""
    from ..data.load import load_dataset
    from ..inference.drawing import grid, save

    for name, json_file, image_root in args.register:
        catalog.register(name, json_file, image_root)
    spec = catalog.get(args.dataset)
    # Boxes without area are an error in training, but do not affect the drawn detections.
    records = load_dataset(spec, invalid_boxes="drop_many", for_evaluation=True)
    results = read_results(args.results)
    categories = {detection["category_id"] for detections in results.values() for detection in detections}
    if not (results.keys() <= set(records.image_ids.tolist()) and categories <= set(records.summary.category_ids)):
        raise UserError(
            f"{args.results} has images or categories that {spec.json_file} lacks: use the evaluated data set"
        )
    pictures, drawn = [], records[: args.count]
    is_unique = len({Path(name).stem for name in drawn.file_names}) == len(drawn)
    for record in drawn:
        picture = draw_record(record, results.get(record["image_id"], []), records.summary, args.threshold)
        if args.truth:
            picture = grid([draw_truth(record, records.summary), picture])
        stem = Path(record["file_name"]).stem
        # Images in different folders may have the same name.
        save(args.out / f"{stem if is_unique else str(record['image_id']) + '_' + stem}.png", picture)
        pictures.append(picture)
    save(args.out / "grid.png", grid(pictures, columns=2 if args.truth else 4))
    print(f"{len(pictures)} pictures and grid.png are in {args.out}")
    ids = {record["image_id"] for record in drawn}
    best = max((item["score"] for image in ids for item in results.get(image, [])), default=0.0)
    if best < args.threshold:
        print(f"No detection has a score of {args.threshold:g}; the highest is {best:.2f}. Lower --threshold.")
