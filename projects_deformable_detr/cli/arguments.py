"""The command line of ``train_net.py``: Detectron2's flags, the engine, and data sets by file."""

import argparse

from ..engine import ENGINES


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's own flags with ``--engine`` and ``--register``; it needs neither engine."""
    parser = argparse.ArgumentParser(
        description="Train or evaluate Deformable DETR.",
        epilog="Example: train_net.py --config-file configs/quickstart.yaml --num-gpus 0 SOLVER.MAX_ITER 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to the config file")
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="{" + ",".join(ENGINES) + "}",
        help="what runs it; auto takes Detectron2 where it is importable (default: auto)",
    )
    add_register_argument(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from OUTPUT_DIR's last checkpoint; begin at MODEL.WEIGHTS where there is none",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=None,
        help="number of GPUs *per machine* (default: 1, or 0 without a GPU)",
    )
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="the rank of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="tcp://HOST:PORT of machine 0 for several machines; auto finds a free port on one (default: auto)",
    )
    parser.add_argument(
        "opts",
        default=[],
        nargs=argparse.REMAINDER,
        help="config keys and values at the end of the command: KEY VALUE KEY VALUE …",
    )
    return parser


def add_register_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--register NAME JSON IMAGE_ROOT``, which may be repeated."""
    parser.add_argument(
        "--register",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_ROOT"),
        help="name a COCO-format data set for DATASETS.TRAIN and DATASETS.TEST (repeatable)",
    )
