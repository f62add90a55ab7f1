"""Converts a folder of annotations in Pascal VOC or YOLO format to one file in COCO format.

Examples:
  deformable-detr convert-data VOC2007 train.json --only VOC2007/ImageSets/Main/train.txt
  deformable-detr convert-data cells/labels cells.json --images cells/images --classes cells/data.yaml
"""

import argparse
import json
import re
from pathlib import Path

HELP = "convert annotations in Pascal VOC or YOLO format to COCO format"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("folder", type=Path, help="folder of .xml or .txt files, or the data set's folder")
    parser.add_argument("output", type=Path, help="COCO file to write")
    parser.add_argument("--images", type=Path, help="image folder (default: images or JPEGImages, or FOLDER)")
    parser.add_argument("--classes", type=Path, help="YAML file with names, or text file with one class per line")
    parser.add_argument("--only", type=Path, help="text file with one image per line, such as ImageSets/Main/train.txt")


def run(args: argparse.Namespace) -> None:
    """Writes the file, and prints a summary and the arguments for training on it."""
    from ..data.conversion import convert_dataset, read_text

    # In class-specific VOC image sets, the name is followed by 1, -1 or 0.
    lines = None if args.only is None else read_text(args.only).splitlines()
    only = None if lines is None else [re.sub(r"\s+-?[01]$", "", line.strip()) for line in lines if line.strip()]
    content, images = convert_dataset(args.folder, args.images, args.classes, only)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    counts = [len(content[key]) for key in ("images", "annotations", "categories")]
    print("{}: {} images, {} objects, {} classes".format(args.output, *counts))
    crowds = sum(item["iscrowd"] for item in content["annotations"])
    if crowds:
        print(f"{crowds} difficult objects are crowds, which are ignored in training and evaluation.")
    print(f"Use it with --train-data {args.output} {images}")
