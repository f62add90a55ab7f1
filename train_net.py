#!/usr/bin/env python3
"""Trains and evaluates Deformable DETR with Detectron2, or with the standalone engine if that is not installed.

train_net.py --config-file configs/quickstart.yaml [--engine auto|detectron2|standalone] [--num-gpus N]
    [--register NAME JSON IMAGE_ROOT]… [--resume] [--eval-only] [KEY VALUE …]

Equivalent to ``deformable-detr train``.
"""

import os
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "300")  # before importing torch, see cli.main

try:
    from projects_deformable_detr.cli import train
    from projects_deformable_detr.cli.arguments import argument_parser
    from projects_deformable_detr.errors import run_command
except ImportError as error:  # a missing operator or a broken Detectron2
    print(f"train_net.py: {error}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Trains or evaluates with the flags of the command line."""
    train.run(argument_parser().parse_args())


if __name__ == "__main__":
    sys.exit(run_command("train_net.py", main))
