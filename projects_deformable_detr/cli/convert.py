"""Converts a checkpoint of another project to a file of this project, or to a file for another project.

Examples:
  deformable-detr convert detr-r50.pth detr.pth --config-file detr_r50_500ep
  deformable-detr convert deformable_detr_r50 detector.pth
  deformable-detr convert runs/cells/model_final.pth cells-hf --to transformers
  deformable-detr convert detector.pth official.pth --to official --coco-ids

The source is a checkpoint of this project, the official repositories, transformers, detrex or mmdetection, an output
folder, or the name of published weights. Class heads are mapped by name to the classes of the config's data sets
(docs/checkpoints.md).
"""

import argparse
from pathlib import Path

from .arguments import add_register_argument

HELP = "convert checkpoints from and to other projects"
_WRITTEN = {
    "deformable-detr": "weights of this project",
    "official": "weights in the official format",
    "transformers": "weights for transformers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("source", help="file, output folder, Hugging Face folder, or published weights")
    parser.add_argument("target", help="file to write; a folder for transformers")
    parser.add_argument(
        "--to",
        choices=_WRITTEN,
        default="deformable-detr",
        help="project of the target; official: DETR's and Deformable DETR's own code (default: deformable-detr)",
    )
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="config of the model, or name of one (default: that of the checkpoint, or of the published weights)",
    )
    parser.add_argument(
        "--keep-logits",
        action="store_true",
        help="keep the class head unchanged (91 logits in COCO's models), regardless of the config's data sets",
    )
    parser.add_argument(
        "--coco-ids",
        action="store_true",
        help="with --to official, move COCO's classes to their category ids: 91 logits (250 in a panoptic model)",
    )
    add_register_argument(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config keys and values, after all other arguments"
    )


def run(args: argparse.Namespace) -> None:
    """Reads the source, converts it and writes the target."""
    import logging
    import sys

    from ..checkpoint import read_weights, save_detector, write_official
    from ..config.inference import data_set_classes, read_config, read_model
    from ..config.model import export_hugging_face
    from ..errors import UserError
    from ..inference.exported import is_exported
    from ..inference.loading import find_model

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args.coco_ids and args.to != "official":
        raise UserError("--coco-ids requires --to official")
    path, entry = find_model(args.source)
    if is_exported(path):
        raise UserError(f"{args.source} is an exported model: convert the checkpoint")
    _check_target(args, path)
    weights = read_weights(path)
    options = [*(("MODEL.DETR.KEEP_CLASS_LOGITS", "True") if args.keep_logits else ()), *args.opts]
    cfg = read_config(path, weights.config, args.config_file or (entry.config if entry else None), options)
    model = read_model(cfg, weights, args.source, data_set_classes(cfg, weights, args.register), keep_unused=True)
    detector, names = model.load(weights, args.source), model.class_names
    if args.to == "deformable-detr":
        save_detector(args.target, detector, iteration=-1, cfg_text=cfg.dump(), class_names=names)
    elif args.to == "official":
        write_official(args.target, detector, (names or ()) if args.coco_ids else None)
    else:
        export_hugging_face(cfg, args.target, detector, names)
    print(f"{args.target}: {_WRITTEN[args.to]} with {model.detector.num_classes} classes, from {args.source}")


def _check_target(args: argparse.Namespace, source: Path) -> None:
    """Checks that the target is a file or a folder, as its format requires, and does not replace the source."""
    from ..checkpoint.files import weights_file
    from ..errors import UserError

    target = Path(args.target)
    wanted, other = ("folder", "file") if args.to == "transformers" else ("file", "folder")
    if target.exists() and target.is_dir() is not (wanted == "folder"):
        raise UserError(f"{target}: must be a {wanted}, got a {other}")
    for written in (target, target / "model.safetensors"):
        if written.exists() and any(written.samefile(read) for read in (source, weights_file(source))):
            raise UserError(f"{target}: would overwrite the source {args.source}; choose another target")
