"""Trains a model, or evaluates a checkpoint (--eval-only), with Detectron2 or PyTorch Lightning.

Examples:
  deformable-detr train --config-file quickstart
  deformable-detr train --config-file small_r18_scratch --epochs 30 --output runs/cells \\
    --train-data cells/train.json cells/images --val-data cells/val.json cells/images
  deformable-detr train --config-file runs/cells/config.yaml --resume

The data sets are JSON files in COCO format with a folder of images. The model is evaluated on --val-data.
Checkpoints, metrics and the config are written to the output folder.
"""

import argparse

from ..engine import check_can_train, choose_engine, is_main_process
from .arguments import add_training_arguments as add_arguments
from .report import check_can_report, report_training

HELP = "train a model on a data set"

__all__ = ["HELP", "add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    """Trains or evaluates with the selected engine."""
    engine = choose_engine(args.engine)
    check_can_train(engine)
    if args.report:
        check_can_report()
    print(f"Engine: {engine.name} ({engine.reason}).", flush=True)
    from ..config.recipes import find_config

    args.config_file = find_config(args.config_file)  # Detectron2 opens the file by this path
    if engine.name == "detectron2":
        from ..detectron2_plugin import main
    else:
        from ..standalone import main
    main(args)
    if args.report and args.machine_rank == 0 and is_main_process():
        from ..config.loading import output_dir

        report_training(output_dir(engine.name, args))
