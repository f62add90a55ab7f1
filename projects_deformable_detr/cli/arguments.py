"""Command-line arguments of ``train_net.py``: Detectron2's flags, the engine, and data sets given as files."""

import argparse

from ..engine import ENGINES


def argument_parser() -> argparse.ArgumentParser:
    """Returns the argument parser of ``train_net.py``, without importing an engine."""
    parser = argparse.ArgumentParser(
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
        "--weights", metavar="W", help="initial weights, or the model of --eval-only; sets MODEL.WEIGHTS"
    )
    parser.add_argument("--output", metavar="DIR", help="output folder; sets OUTPUT_DIR")
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="train for N passes over the training images, and evaluate and save a checkpoint after each (every few if "
        "they have less than 100 iterations); sets SOLVER.MAX_ITER, scales SOLVER.STEPS with it, limits the warm-up",
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
