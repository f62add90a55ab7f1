"""Evaluates a model on annotated images: COCO's metrics, precision and recall of each class, and latency.

Examples:
  deformable-detr val --weights runs/cells --data cells/val.json --images cells/images
  deformable-detr val --weights deformable_detr_r50_two_stage --data instances_val2017.json --images val2017 \\
    --output val

The classes of the annotations and the model are matched by name. The metrics are the same as with train --eval-only.
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Range, UserError
from .arguments import add_model_arguments, check_output_folder, load_model, number

if TYPE_CHECKING:
    from ..data.records import Records
    from ..inference import Detector
    from ..inference.evaluation import Evaluation

HELP = "evaluate a model on annotated images"
_COLUMNS = ("threshold", "precision", "recall", "F1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_model_arguments(parser)
    parser.add_argument(
        "--data", required=True, metavar="JSON", help="annotations in COCO's instances or panoptic format, or LVIS's"
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument(
        "--segments", metavar="DIR", help="folder of the segments (PNG) of annotations in the panoptic format"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write val.json, val.md and COCO's results file to this folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into an output folder that is not empty")
    parser.add_argument(
        "--iou",
        type=number(Range(above=0, high=1), float),
        default=0.5,
        help="IoU of precision and recall (default: %(default)s)",
    )
    parser.add_argument(
        "--latency-images",
        type=number(Range(0)),
        default=20,
        metavar="N",
        help="number of images for the latency measurement; 0: none (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Evaluates the model, then prints and writes the results."""
    if args.output:
        check_output_folder(args.output, overwrite=args.overwrite)
    import tempfile
    import time

    from tqdm import tqdm

    from ..config.data import DATA_KEYS, READER_KEYS
    from ..config.reading import naming_keys
    from ..data.catalog import DatasetSpec
    from ..data.image_check import check_images
    from ..data.load import load_dataset
    from ..data.problems import DatasetError
    from ..inference.evaluation import evaluate, measure_latency

    detector = load_model(args)
    spec = DatasetSpec(Path(args.data).stem, args.data, args.images, args.segments)
    # Boxes without area are ignored, as in train --eval-only with DATASETS.INVALID_BOXES drop_many.
    masks = detector.metadata.has_masks
    try:
        records = load_dataset(spec, "drop_many", for_evaluation=True, masks=masks)
    except DatasetError as error:
        data = Path(args.data)
        if args.segments is None and data.is_file() and b'"segments_info"' in data.read_bytes():
            raise UserError(f"{data} is in the panoptic format: add --segments DIR, the folder of its PNGs") from error
        raise
    with naming_keys(DATA_KEYS | READER_KEYS):
        check_images(records, detector.metadata.reader)
    with tempfile.TemporaryDirectory() as temporary:
        output_dir = args.output or Path(temporary)
        start = time.perf_counter()
        with tqdm(total=len(records), unit=" images", disable=None) as bar:
            result = evaluate(
                detector, records, output_dir, iou=args.iou, batch_size=args.batch_size, on_image=bar.update
            )
        speed = len(records) / (time.perf_counter() - start)
    latency = measure_latency(detector, records.file_names[: args.latency_images]) if args.latency_images else None
    report = _report(args, detector, records, result, speed, latency)
    text = _markdown(report)
    print(text)
    if args.output:
        (args.output / "val.json").write_text(json.dumps(_without_nan(report), indent=1) + "\n", encoding="utf-8")
        (args.output / "val.md").write_text(text + "\n", encoding="utf-8")
        print(f"\nval.json, val.md and COCO's results file are in {args.output}")


def _report(
    args: argparse.Namespace,
    detector: "Detector",
    records: "Records",
    result: "Evaluation",
    speed: float,
    latency: float | None,
) -> dict[str, Any]:
    """Returns the content of ``val.json``."""
    return {
        "weights": str(args.weights),
        "data": str(args.data),
        "images": len(records),
        "device": str(detector.device),
        "dtype": args.dtype,
        "metrics": result.metrics,
        "iou": args.iou,
        "best_f1": result.best_f1,
        "best_f1_of_classes": result.best_f1_of_classes,
        "objects": result.objects,
        "latency_ms": latency,
        "images_per_second": speed,
    }


def _markdown(report: dict[str, Any]) -> str:
    """Returns the report as Markdown."""
    from ..evaluation.coco import format_metrics

    lines = [f"`{report['weights']}` on `{report['data']}`, {report['images']} images", ""]
    for kind, metrics in report["metrics"].items():
        lines += [{"bbox": "Boxes:", "segm": "Masks:", "panoptic_seg": "Panoptic segmentation:"}[kind], ""]
        for start in ("AP", "AR"):
            names = [name for name in metrics if name.startswith(start) and not name.startswith("AP-")]
            if names:  # LVIS has no recall
                lines += [format_metrics({name: metrics[name] for name in names}), ""]
        if kind == "panoptic_seg":
            lines += [_panoptic_tables(metrics), ""]
    if report["best_f1"]:
        lines += [f"Score threshold with the best F1 at IoU {report['iou']:g}:", "", _table(report), ""]
    if report["latency_ms"] is not None:
        where = f"on {report['device']} in {report['dtype']}"
        lines += [f"Latency {where}: {report['latency_ms']:.1f} ms from pixels to detections, one image at a time."]
    lines += [f"Evaluation: {report['images_per_second']:.2f} images per second, including image reading."]
    return "\n".join(lines)


def _panoptic_tables(metrics: dict[str, float]) -> str:
    """Returns the means over all classes, things and stuff, and the panoptic quality of each class."""
    from tabulate import tabulate

    groups = (("all", ""), ("things", "_th"), ("stuff", "_st"))
    means = [[name, *(metrics[key + suffix] for key in ("PQ", "SQ", "RQ"))] for name, suffix in groups]
    classes = [(name.removeprefix("PQ-"), value) for name, value in metrics.items() if name.startswith("PQ-")]
    tables = (means, ["classes", "PQ", "SQ", "RQ"]), (classes, ["class", "PQ"])
    return "\n\n".join(tabulate(*table, tablefmt="pipe", floatfmt=".2f") for table in tables)


def _table(report: dict[str, Any]) -> str:
    """Returns AP and the threshold with the best F1 of each class, and of all classes with one threshold."""
    from tabulate import tabulate

    metrics, objects = report["metrics"], report["objects"]
    ap_columns = ("AP" if kind == "bbox" else "mask AP" for kind in metrics)
    header = ["class", "objects", *ap_columns, *_COLUMNS, "detections per image"]

    def row(name: str, count: int, key: str, best: dict[str, float]) -> list[Any]:
        values = (part.get(key, part["AP"]) for part in metrics.values())  # no separate AP for a single class
        return [name, count, *values, *(best[column] for column in (*_COLUMNS, "detections_per_image"))]

    rows = [row(name, objects[name], f"AP-{name}", best) for name, best in report["best_f1_of_classes"].items()]
    rows.append(row("(all)", sum(objects.values()), "AP", report["best_f1"]))
    formats = ["g", "d", *(".2f" for _ in metrics), *(".3f" for _ in _COLUMNS), ".2f"]
    text: str = tabulate(rows, header, tablefmt="pipe", floatfmt=formats)
    return text


def _without_nan(value: Any) -> Any:
    """Replaces NaN, which JSON lacks, with None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
