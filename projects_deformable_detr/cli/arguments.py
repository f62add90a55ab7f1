"""Arguments of ``train_net.py`` and ``deformable-detr train``, and arguments that several commands share."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..engine import ENGINES
from ..errors import Range, UserError, did_you_mean

if TYPE_CHECKING:
    from ..inference import Detector


class ArgumentParser(argparse.ArgumentParser):
    """Argument parser whose errors contain the unknown option, and the most similar option or choice."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses arguments; unknown options are errors, also if a required argument is missing because of them."""
        words = sys.argv[1:] if args is None else args
        options = self._option_string_actions
        for word in () if self._subparsers else takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in options):
                self.error(f"unknown option {name}{did_you_mean(name, options)}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Prints usage and message, and exits with status 2."""
        if match := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += did_you_mean(match[1], re.findall(r"[\w.-]+", match[2]))
        super().error(message)


def argument_parser() -> argparse.ArgumentParser:
    """Returns the argument parser of ``train_net.py``, without importing an engine."""
    parser = ArgumentParser(
        description="Train or evaluate Deformable DETR.",
        epilog="Example: train_net.py --config-file configs/quickstart.yaml --num-gpus 0 SOLVER.MAX_ITER 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_training_arguments(parser)
    return parser


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds Detectron2's flags, ``--engine``, data sets given as files, and the training length in epochs."""
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="path of a config file, or name of one, such as quickstart"
    )
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="{" + ",".join(ENGINES) + "}",
        help="training engine; auto: detectron2 if it is installed, else standalone (default: auto)",
    )
    add_data_arguments(parser)
    add_register_argument(parser)
    parser.add_argument(
        "--weights",
        metavar="W",
        help="initial weights, or the model of --eval-only: file, output folder, or empty for none; sets MODEL.WEIGHTS",
    )
    parser.add_argument("--output", metavar="DIR", help="output folder; sets OUTPUT_DIR")
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="train for N passes over the training images, and evaluate and save a checkpoint after each (every few if "
        "they have fewer than 100 iterations); sets SOLVER.MAX_ITER, scales SOLVER.STEPS with it, limits the warm-up",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the checkpoints and metrics of an earlier run in OUTPUT_DIR"
    )
    parser.add_argument(
        "--check-images",
        action="store_true",
        help="read the headers of all image files before training (default: 2,000 images per data set)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write report.html to the output folder at the end; needs the extra report",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=None,
        help="number of GPUs, and of processes, per machine (default: 1, or 0 without a GPU)",
    )
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="index of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="tcp://HOST:PORT of machine 0; auto: a free port, for one machine (default: auto)",
    )
    parser.add_argument(
        "opts",
        default=[],
        nargs=argparse.REMAINDER,
        help="config keys and values, after all flags: KEY VALUE KEY VALUE …",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--train-data JSON IMAGES`` and ``--val-data JSON IMAGES``."""
    for name, use in (("train", "train on"), ("val", "evaluate on")):
        parser.add_argument(
            f"--{name}-data",
            nargs=2,
            metavar=("JSON", "IMAGES"),
            help=f"annotation file in COCO format and image folder to {use}, instead of the data sets in the config",
        )


def add_model_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    *,
    with_batches: bool = True,
    with_exported: bool = True,
) -> None:
    """Adds the arguments of commands that run a model, with those for many images if ``with_batches``."""
    exported = ", exported model" if with_exported else ""
    parser.add_argument(
        "--weights", required=True, metavar="W", help=f"checkpoint, output folder{exported} or published weights"
    )
    add_config_argument(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda if there is a GPU)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="precision")
    if not with_batches:
        parser.set_defaults(compile=False)
        return
    parser.add_argument("--compile", action="store_true", help="compile the model: slower start, faster inference")
    parser.add_argument(
        "--batch-size",
        type=number(Range(1)),
        metavar="N",
        help="maximum number of images per batch (default: 8; fewer for large images on CPUs)",
    )


def load_model(args: argparse.Namespace) -> "Detector":
    """Opens the model of `add_model_arguments`."""
    from ..inference import Detector

    options = {"device": args.device, "dtype": args.dtype, "compile": args.compile}
    return Detector.load(args.weights, config=args.config_file, **options)


def add_config_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds ``--config-file`` of commands that open a model."""
    parser.add_argument(
        "--config-file", metavar="FILE", help="config of a checkpoint that has none: file or recipe name"
    )


def add_register_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the repeatable option ``--register NAME JSON IMAGE_ROOT``."""
    parser.add_argument(
        "--register",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_ROOT"),
        help="register a data set in COCO format for DATASETS.TRAIN and DATASETS.TEST (repeatable); a pair NAME_train "
        "and NAME_val replaces the data sets in the config file",
    )


def number(range: Range, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """Returns a ``type`` of an argument: a number in a range."""

    def parse(text: str) -> float:
        value = kind(text)
        if value not in range:
            raise argparse.ArgumentTypeError(f"must be {range}, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse prints the name for texts that are not numbers
    return parse


def check_output_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises `UserError` if a folder cannot be created or written, or has files and ``overwrite`` is not set."""
    check_writable(folder)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another folder with --output, or add --overwrite")


def check_writable(folder: Path) -> None:
    """Raises `UserError` if a folder is not writable or, if it does not exist, cannot be created."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file: choose another folder with --output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest} is not writable: choose another folder with --output")


def check_not_input(path: Path, inputs: Iterable[str]) -> None:
    """Raises `UserError` if writing a file would replace one of the input files."""
    if path.exists() and any(os.path.exists(name) and path.samefile(name) for name in inputs):
        raise UserError(f"{path} is an input file: choose another folder with --output")
