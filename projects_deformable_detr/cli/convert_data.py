"""Converts a folder of annotations in Pascal VOC's or YOLO's format to one file in COCO's format.

python -m projects_deformable_detr.cli.convert_data FOLDER OUTPUT.json [--images DIR] [--classes FILE] [--only FILE]
"""

import argparse
import json
import re
import sys
from pathlib import Path

from ..data.conversion import convert_dataset, read_text
from ..errors import run_command


def main() -> None:
    """Writes the file, and prints its contents and how to train on it."""
    parser = argparse.ArgumentParser(description="Converts annotations in Pascal VOC's or YOLO's format to COCO's.")
    parser.add_argument("folder", type=Path, help="folder of .xml or .txt files, or the data set's folder")
    parser.add_argument("output", type=Path, help="COCO file to write")
    parser.add_argument("--images", type=Path, help="image folder (default: images or JPEGImages, or FOLDER)")
    parser.add_argument("--classes", type=Path, help="YAML file with names, or text file with one class per line")
    parser.add_argument("--only", type=Path, help="text file with one image per line, such as ImageSets/Main/train.txt")
    args = parser.parse_args()
    # In VOC's files of one class, 1, -1 or 0 follows the name.
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
    print(f"Use it with --register NAME {args.output} {images}")


if __name__ == "__main__":
    sys.exit(run_command("convert_data", main))
