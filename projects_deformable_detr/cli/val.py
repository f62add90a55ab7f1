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

if TYPE_CHECKING:
    from ..data.records import Records
    from ..inference import Detector
    from ..inference.evaluation import Evaluation

HELP = "evaluate a model on annotated images"
_COLUMNS = ("threshold", "precision", "recall", "F1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "--weights", required=True, metavar="W", help="checkpoint, output folder, exported model or published weights"
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="config of a checkpoint that has none: file or recipe name"
    )
    parser.add_argument(
        "--data", required=True, metavar="JSON", help="annotations in COCO's instances format or LVIS's"
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write val.json, val.md and COCO's results file to this folder"
    )
    parser.add_argument("--iou", type=float, default=0.5, help="IoU of precision and recall (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda if there is a GPU)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="precision")
    parser.add_argument("--compile", action="store_true", help="compile the model: slower start, faster inference")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per batch (default: 1 on CPUs, 8 on GPUs)")
    parser.add_argument(
        "--latency-images",
        type=int,
        default=20,
        metavar="N",
        help="measure the time of one image at a time with N images; 0: none (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Evaluates the model, then prints and writes the results."""
    import tempfile
    import time

    from tqdm import tqdm

    from ..data.catalog import DatasetSpec
    from ..data.load import load_dataset
    from ..errors import UserError
    from ..inference import Detector
    from ..inference.evaluation import evaluate, measure_latency

    if not 0 < args.iou <= 1:
        raise UserError(f"--iou must be in (0, 1], got {args.iou}")
    options = {"device": args.device, "dtype": args.dtype, "compile": args.compile}
    detector = Detector.load(args.weights, config=args.config_file, **options)
    spec = DatasetSpec(Path(args.data).stem, args.data, args.images)
    # Boxes without area are ignored, as in train --eval-only with DATASETS.INVALID_BOXES drop_many.
    masks = detector.metadata.has_masks
    records = load_dataset(spec, "drop_many", for_evaluation=True, masks=masks)
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
        lines += [{"bbox": "Boxes:", "segm": "Masks:"}[kind], ""]
        for start in ("AP", "AR"):
            names = [name for name in metrics if name.startswith(start) and not name.startswith("AP-")]
            if names:  # LVIS has no recall
                lines += [format_metrics({name: metrics[name] for name in names}), ""]
    if report["best_f1"]:
        lines += [f"Score threshold with the best F1 at IoU {report['iou']:g}:", "", _table(report), ""]
    if report["latency_ms"] is not None:
        where = f"on {report['device']} in {report['dtype']}"
        lines += [f"Latency {where}: {report['latency_ms']:.1f} ms from pixels to detections, one image at a time."]
    lines += [f"Evaluation: {report['images_per_second']:.2f} images per second, with reading."]
    return "\n".join(lines)


def _table(report: dict[str, Any]) -> str:
    """Returns AP and the threshold with the best F1 of each class, and of all classes with one threshold."""
    from tabulate import tabulate

    metrics, objects = report["metrics"], report["objects"]
    header = ["class", "objects", *("AP" if kind == "bbox" else "mask AP" for kind in metrics), *_COLUMNS, "per image"]

    def row(name: str, count: int, key: str, best: dict[str, float]) -> list[Any]:
        values = (part.get(key, part["AP"]) for part in metrics.values())  # no separate AP for a single class
        return [name, count, *values, *(best[column] for column in (*_COLUMNS, "per image"))]

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
