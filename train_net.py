#!/usr/bin/env python3
"""Trains and evaluates Deformable DETR on Detectron2, or on the standalone engine where there is none.

train_net.py --config-file configs/quickstart.yaml [--engine auto|detectron2|standalone] [--num-gpus N]
    [--register NAME JSON IMAGE_ROOT]… [--resume] [--eval-only] [KEY VALUE …]
"""

import os
import sys

# Before torch is imported: idle OpenMP threads spin for microseconds only, not for milliseconds. A machine of few cores
# needs them for its data loader: with anything else running, steps became several times slower. Not spinning at all
# costs more than a second core brings (2 cores, quickstart: 0.26 s an iteration; 0.22 s on one thread; 0.17 s so).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from projects_deformable_detr.cli.arguments import argument_parser
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
