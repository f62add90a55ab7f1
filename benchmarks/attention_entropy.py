#!/usr/bin/env python3
"""Sparsity of the decoder's attention of DETR and Deformable DETR during training (arXiv 2011.10881).

python benchmarks/attention_entropy.py output/quickstart [--work DIR] [--report DIR]

Trains both models with TEST.ATTENTION_ENTROPY on 128-pixel tiles of 256-pixel scenes of the shapes data, which have
fewer and larger objects than the data of the quick start. The backbone is the frozen one of the quick start, so that
DETR learns within an hour of CPU time. Writes a table and a plot (with matplotlib) of the negative entropy to --report.
Finished models in --work are not trained again; the models are also those of the figures in docs/explain.md.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TILE = 128
KEYS = {  # one feature map of stride 8, as far as DETR is concerned
    "MODEL.BACKBONE.FREEZE_AT": "5",
    "MODEL.RESNETS.OUT_FEATURES": "['res3']",
    "MODEL.DETR.IN_FEATURES": "['res3']",
    "MODEL.DETR.NUM_FEATURE_LEVELS": "1",
    "MODEL.DETR.ENC_LAYERS": "3",
    "MODEL.DETR.DEC_LAYERS": "3",
    "MODEL.DETR.NUM_OBJECT_QUERIES": "20",
    "MODEL.DETR.ALLOW_PARTIAL_WEIGHTS": "True",
    "MODEL.DETR.WITH_BOX_REFINE": "False",
    "MODEL.DETR.TWO_STAGE": "False",
    "SOLVER.SAMPLING_MULTIPLIER": "0.1",
    "SOLVER.BASE_LR": "0.0004",
    "TEST.ATTENTION_ENTROPY": "50",
    "SEED": "1",
}
MODELS: dict[str, dict[str, str]] = {
    "DETR": {"MODEL.META_ARCHITECTURE": "DETR"},
    "Deformable DETR": {},
}
Curve = list[tuple[int, list[float], float]]  # iteration, negative entropy of each decoder layer, AP


def make_tiles(scenes: Path, tiles: Path, split: str) -> None:
    """Cuts the images of a split; objects of which a tile shows less than half of the box are left out."""
    from PIL import Image

    content = json.loads((scenes / f"annotations/instances_{split}.json").read_text())
    objects: dict[int, list[dict[str, Any]]] = {}
    for item in content["annotations"]:
        objects.setdefault(item["image_id"], []).append(item)
    images, annotations = [], []
    (tiles / split).mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        with Image.open(scenes / split / image["file_name"]) as picture:
            for index in range(4):
                left, top = TILE * (index % 2), TILE * (index // 2)
                name, number = f"{image['id']}_{index}.png", len(images) + 1
                picture.crop((left, top, left + TILE, top + TILE)).save(tiles / split / name)
                images.append({"id": number, "file_name": name, "width": TILE, "height": TILE})
                for item in objects.get(image["id"], []):
                    x, y, width, height = item["bbox"]
                    x1, y1 = max(x - left, 0), max(y - top, 0)
                    w, h = min(x + width - left, TILE) - x1, min(y + height - top, TILE) - y1
                    if w > 0 and h > 0 and w * h >= 0.5 * width * height:
                        part = {"category_id": item["category_id"], "bbox": [x1, y1, w, h], "area": w * h, "iscrowd": 0}
                        annotations.append({"id": len(annotations) + 1, "image_id": number, **part})
    content |= {"images": images, "annotations": annotations}
    (tiles / f"{split}.json").write_text(json.dumps(content))


def train(title: str, iterations: int, args: argparse.Namespace) -> Path:
    """Trains and evaluates a model in a new process, unless it is finished; returns its output folder."""
    folder: Path = args.work / title.lower().replace(" ", "_")
    if (folder / "model_final.pth").exists():
        return folder
    period = max(1, iterations // 20)
    keys = KEYS | MODELS[title] | {"SOLVER.MAX_ITER": str(iterations), "TEST.EVAL_PERIOD": str(period)}
    data = {
        split: (str(args.work / f"tiles/{split}.json"), str(args.work / f"tiles/{split}")) for split in ("train", "val")
    }
    command = [sys.executable, "-m", "projects_deformable_detr", "train", "--engine", "standalone", "--overwrite"]
    command += ["--config-file", "quickstart", "--weights", args.weights, "--output", str(folder), "--num-gpus", "0"]
    command += ["--train-data", *data["train"], "--val-data", *data["val"]]
    command += [part for pair in keys.items() for part in pair]
    subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=True)
    return folder


def read_curve(folder: Path) -> Curve:
    """Returns the logged negative entropies and AP of a run, in order."""
    records: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        record = json.loads(line)
        records.setdefault(record["iteration"] + 1, {}).update(record)
    curve = []
    for iteration, record in sorted(records.items()):
        names = sorted(name for name in record if name.startswith("attention/negative_entropy_"))
        if names:
            curve.append((iteration, [record[name] for name in names], record["bbox/AP"]))
    return curve


def table(curves: dict[str, Curve]) -> str:
    """Returns a table of the first, middle and last values."""
    layers = range(len(next(iter(curves.values()))[0][1]))
    lines = [
        "| model | iteration | " + " | ".join(f"layer {layer + 1}" for layer in layers) + " | AP |",
        "|---|---|" + "---|" * (len(layers) + 1),
    ]
    for title, curve in curves.items():
        for iteration, values, ap in (curve[0], curve[len(curve) // 4], curve[len(curve) // 2], curve[-1]):
            lines.append(
                f"| {title} | {iteration} | " + " | ".join(f"{value:.2f}" for value in values) + f" | {ap:.1f} |"
            )
    return "\n".join(lines)


def places(folder: Path, tiles: Path, count: int = 100) -> str:
    """Returns a row of a table: positions of the attention of the last decoder layer, and of the last encoder layer.

    The columns are the shares of the decoder's attention in the inner half of the box (by width and height), the rest
    of the box, its surroundings (the box enlarged by half) and beyond, as means over detections with a score of at
    least 0.3; and the share of the encoder's attention of an object's center that is inside its box, divided by the
    share of the image that the box covers, as a median over objects.
    """
    import torch

    from projects_deformable_detr import Detector

    detector = Detector.load(folder, device="cpu")
    content = json.loads((tiles / "val.json").read_text())
    shares, focus = [], []
    for image in content["images"][:count]:
        boxes = torch.tensor(
            [item["bbox"] for item in content["annotations"] if item["image_id"] == image["id"]]
        ).reshape(-1, 4)
        centers = (boxes[:, :2] + boxes[:, 2:] / 2).tolist()
        found = detector.explain(tiles / "val" / image["file_name"], points=centers, score_threshold=0.3)
        corners = found.boxes[-1]
        for row in range(len(found.detections)):
            locations, weights = _attention(found.attention, row)
            center, half = (corners[row, :2] + corners[row, 2:]) / 2, (corners[row, 2:] - corners[row, :2]) / 2
            distance = ((locations - center) / half).abs().amax(-1)
            rings = ((0, 0.5), (0.5, 1), (1, 1.5), (1.5, float("inf")))
            shares.append([float(weights[(distance >= low) & (distance < high)].sum()) for low, high in rings])
        for row, (x, y, width, height) in enumerate(boxes.tolist()):
            locations, weights = _attention(found.point_attention, row)
            inside = ((locations >= torch.tensor([x, y])) & (locations < torch.tensor([x + width, y + height]))).all(-1)
            focus.append(float(weights[inside].sum()) / (width * height / TILE**2))
    means = torch.tensor(shares).mean(0).tolist()
    columns = [*(f"{100 * share:.0f} %" for share in means), f"{torch.tensor(focus).median():.1f}"]
    return f"| {folder.name} | {len(shares)} | " + " | ".join(columns) + " |"


def _attention(attention: Any, row: int) -> tuple[Any, Any]:
    """Returns positions (P, 2) in pixels and weights (P,) with sum 1 of the last layer, as a mean over heads."""
    import torch

    weights = attention.weights[-1, row] / attention.weights.shape[2]
    if hasattr(attention, "locations"):
        return attention.locations[-1, row].reshape(-1, 2), weights.flatten()
    rows, columns = weights.shape[1:]
    y, x = (TILE * (torch.arange(size) + 0.5) / size for size in (rows, columns))
    return torch.cartesian_prod(y, x).flip(-1), weights.sum(0).flatten()


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Draws the curve of each decoder layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for (title, curve), color in zip(curves.items(), ("#c2452d", "#2d6bc2"), strict=True):
        iterations = [iteration for iteration, _, _ in curve]
        for layer, values in enumerate(zip(*(values for _, values, _ in curve), strict=True)):
            style = ("-", "--", ":")[layer % 3]
            axes.plot(iterations, values, style, color=color, label=f"{title}, layer {layer + 1}")
    axes.set_xlabel("iteration")
    axes.set_ylabel("negative entropy (nats)")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    """Trains, and writes table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="trained model of the quick start")
    parser.add_argument("--work", type=Path, default=Path("output/attention_entropy"), help="folder of data and runs")
    parser.add_argument("--images", type=int, default=2000, help="scenes, of 4 tiles each (default: %(default)s)")
    parser.add_argument("--iterations", type=int, nargs=2, default=[8000, 2000], help="of both models (%(default)s)")
    parser.add_argument("--report", type=Path, help="folder of attention_entropy.png")
    args = parser.parse_args()
    scenes, tiles = args.work / "scenes", args.work / "tiles"
    if not (tiles / "val.json").exists():
        from projects_deformable_detr.shapes.dataset import generate

        generate(scenes, num_train=args.images, num_val=50, size=(2 * TILE, 2 * TILE))
        for split in ("train", "val"):
            make_tiles(scenes, tiles, split)
    lengths = dict(zip(MODELS, args.iterations, strict=True))
    folders = {title: train(title, length, args) for title, length in lengths.items()}
    curves = {title: read_curve(folder) for title, folder in folders.items()}
    print(table(curves))
    print("| model | detections | inner half | rest of the box | surroundings | beyond | encoder: focus |")
    print("|---|---|---|---|---|---|---|", *(places(folder, tiles) for folder in folders.values()), sep="\n")
    if args.report:
        plot(curves, args.report / "attention_entropy.png")


if __name__ == "__main__":
    main()
