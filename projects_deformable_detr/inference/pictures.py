"""Pictures of an evaluation's detections, from its results file: either engine's, and no model is needed.

python -m projects_deformable_detr.inference.pictures --dataset NAME --results FILE --out DIR
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.arguments import add_register_argument
from ..data import catalog
from ..data.images import read_image
from ..data.load import load_dataset
from ..data.masks import decode
from ..errors import UserError
from . import drawing as visualize


def read_results(path: str | Path) -> dict[Any, list[dict]]:
    """Detections of a COCO results file by image id.

    Raises:
        UserError: if the file is missing or not in COCO's results format.
    """
    try:
        results = json.loads(Path(path).read_text())
        by_image: dict[Any, list[dict]] = defaultdict(list)
        for result in results:
            by_image[result["image_id"]].append(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a COCO results file ({error}); evaluate first, with --eval-only") from error
    return by_image


def draw_record(record: dict, detections: list[dict], summary: Any, threshold: float) -> np.ndarray:
    """The picture of one image (H, W, 3) uint8 RGB, with its detections of at least ``threshold``."""
    kept = [detection for detection in detections if detection["score"] >= threshold]
    ids = {category: index for index, category in enumerate(summary.category_ids)}
    boxes = np.array([detection["bbox"] for detection in kept], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    rles = [detection["segmentation"] for detection in kept if "segmentation" in detection]
    return visualize.draw(
        read_image(record["file_name"]),
        boxes,
        [ids[detection["category_id"]] for detection in kept],
        [detection["score"] for detection in kept],
        summary.class_names,
        masks=decode(rles, record["height"], record["width"]) if rles else None,
    )


def main() -> None:
    """Writes one picture an image, and a grid of them, to ``--out``."""
    parser = argparse.ArgumentParser(description="Draws an evaluation's detections.")
    parser.add_argument("--dataset", required=True, help="name of the data set that was evaluated")
    add_register_argument(parser)
    parser.add_argument("--results", required=True, help="OUTPUT_DIR/inference/coco_instances_results.json")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--count", type=int, default=12, help="how many images (default: 12)")
    parser.add_argument("--threshold", type=float, default=0.4, help="least score drawn, in [0, 1] (default: 0.4)")
    args = parser.parse_args()
    for name, json_file, image_root in args.register:
        catalog.register(name, json_file, image_root)
    spec = catalog.get(args.dataset)
    # What is drawn are detections: boxes that a training would refuse do not matter here.
    records = load_dataset(spec, invalid_boxes="drop")
    results = read_results(args.results)
    pictures = []
    for record in records[: args.count]:
        picture = draw_record(record, results.get(record["image_id"], []), records.summary, args.threshold)
        visualize.save(args.out / f"{Path(record['file_name']).stem}.png", picture)
        pictures.append(picture)
    visualize.save_grid(args.out / "grid.png", pictures)
    print(f"{len(pictures)} pictures and grid.png are in {args.out}")


if __name__ == "__main__":
    main()
