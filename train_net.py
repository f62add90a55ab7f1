#!/usr/bin/env python3
"""Trains and evaluates Deformable DETR on Detectron2, or on the standalone engine where there is none.

train_net.py --config-file configs/quickstart.yaml [--engine auto|detectron2|standalone] [--num-gpus N]
    [--register NAME JSON IMAGE_ROOT]… [--resume] [--eval-only] [KEY VALUE …]
"""

import os
import sys

# Before torch is imported: idle OpenMP threads sleep. Spinning, their default, takes the core that a data loader
# needs, and made steps several times slower on machines with few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from projects_deformable_detr.cli import argument_parser
from projects_deformable_detr.engine import check_can_train, choose_engine
from projects_deformable_detr.errors import UserError


def main() -> int:
    """Returns the exit status: 0, or 2 for input that the message on stderr explains."""
    args = argument_parser().parse_args()
    try:
        engine = choose_engine(args.engine)
        check_can_train(engine)
        print(f"Engine: {engine.name} ({engine.reason}).", flush=True)
        if engine.name == "detectron2":
            from projects_deformable_detr.detectron2_plugin import main as run
        else:
            from projects_deformable_detr.standalone import main as run
        run(args)
    except UserError as error:
        print(f"train_net.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
