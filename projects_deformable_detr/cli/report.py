"""Writes one HTML page about one or several training runs, which needs no other files and no network.

Examples:
  deformable-detr report output/cells
  deformable-detr report output/a output/b --output comparison.html
  deformable-detr report output/cells --data cells/val.json cells/images

Sources are the files of output folders, also of other Detectron2 training runs. The errors are those in the test sets
of the configs, or in --data. If the folder has no results of an evaluation of its model, the model is evaluated.
"""

import argparse
import sys
from pathlib import Path

from ..errors import UserError

HELP = "write an HTML page about training runs"
FILE_NAME = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUTPUT_DIR", help="output folder of a training run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"page to write (default: {FILE_NAME} in the first folder)"
    )
    parser.add_argument(
        "--data",
        nargs=2,
        metavar=("JSON", "IMAGES"),
        help="annotation file in COCO's instances format and image folder for the error analysis",
    )
    parser.add_argument("--weights", metavar="W", help="analyze the errors of this model instead of the folder's")


def run(args: argparse.Namespace) -> None:
    """Writes the page; prints its path, and to stderr the error analyses that it lacks."""
    from ..report import write_report
    from ..report.predictions import ERROR_ANALYSIS

    if args.weights and len(args.folders) > 1:
        raise UserError("--weights is for one output folder: the errors of several runs are those of their models")
    output = args.output or args.folders[0] / FILE_NAME
    runs = write_report(args.folders, output, data=args.data and tuple(args.data), weights=args.weights)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB", flush=True)
    for run in runs:
        for part, reason in run.missing:
            if part.startswith(ERROR_ANALYSIS):
                print(f"{run.name}: without {part[0].lower()}{part[1:]}: {reason}", file=sys.stderr)


def check_can_report() -> None:
    """Raises `UserError` if a package that reports need is not installed."""
    from ..engine import is_installed
    from ..errors import missing_package

    for package in ("hotcoco", "jinja2", "matplotlib"):
        if not is_installed(package):
            raise UserError(f"a report {missing_package(package)}")


def report_training(folder: Path) -> None:
    """Writes the page about a training run that has just ended; an error is printed, because the run is complete."""
    import traceback

    try:
        run(argparse.Namespace(folders=[folder], output=None, data=None, weights=None))
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        message = f"The training is complete, but its report failed ({error}). After correcting the cause, run:"
        print(f"{message}\ndeformable-detr report {folder}", file=sys.stderr)
