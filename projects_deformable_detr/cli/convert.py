"""Converts a checkpoint of another project to a file of this project, or to a file for another project.

Examples:
  deformable-detr convert detr-r50.pth detr.pth --config-file detr_r50_500ep
  deformable-detr convert zoo://deformable_detr_r50 detector.pth
  deformable-detr convert runs/cells/model_final.pth cells-hf --to transformers
  deformable-detr convert detector.pth official.pth --to official --coco-ids

The source is a checkpoint of this project, the official repositories, transformers, detrex or mmdetection, or the name
of published weights. Class heads are mapped by name to the classes of the config's data sets (docs/checkpoints.md).
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_register_argument

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from ..checkpoint import Weights

HELP = "convert checkpoints from and to other projects"
_WRITTEN = {
    "deformable-detr": "weights of this project",
    "official": "weights in the official format",
    "transformers": "weights for transformers",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("source", help="file, Hugging Face folder, or zoo://NAME")
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

    from ..checkpoint import CheckpointError, fit, read_weights, save_detector, write_official
    from ..checkpoint.load import file_classes
    from ..config import build_detector
    from ..config.checkpoint import LOADING_KEYS, load_options
    from ..config.export import export_hugging_face
    from ..config.model import criterion_config
    from ..config.reading import naming_keys
    from ..data import catalog

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _check_target(args)
    weights = read_weights(args.source)
    cfg = _load_cfg(args, weights)
    for item in [*cfg.DATASETS.REGISTER, *args.register]:
        catalog.register(*item)
    if args.keep_logits:
        cfg.MODEL.DETR.KEEP_CLASS_LOGITS = True
    format, count, stored = file_classes(weights, criterion_config(cfg).class_loss == "softmax")
    if format is None or format.is_backbone:
        found = "unknown weights" if format is None else "the weights of a backbone"
        raise CheckpointError(f"{args.source}: must contain a detector, got {found}; backbones need no conversion")
    names = None if cfg.MODEL.DETR.KEEP_CLASS_LOGITS else _data_set_classes(cfg)
    # If it is 0, use the number of classes of the data sets if they are available, otherwise that of the file.
    cfg.MODEL.DETR.NUM_CLASSES = num_classes = cfg.MODEL.DETR.NUM_CLASSES or (len(names) if names else count)
    detector = build_detector(cfg, weights="")
    with naming_keys(LOADING_KEYS):
        fitting, _ = fit(detector, weights, args.source, load_options(cfg, for_evaluation=True, class_names=names))
    detector.load_state_dict(fitting, strict=False)
    detector.eval()
    if names is None and stored is not None and len(stored) == num_classes:
        names = tuple(name or "N/A" for name in stored)
    if args.to == "deformable-detr":
        save_detector(args.target, detector, iteration=-1, cfg_text=cfg.dump(), class_names=names)
    elif args.to == "official":
        write_official(args.target, detector, (names or ()) if args.coco_ids else None)
    else:
        export_hugging_face(cfg, args.target, detector, names)
    print(f"{args.target}: {_WRITTEN[args.to]} with {num_classes} classes, from {args.source}")


def _load_cfg(args: argparse.Namespace, weights: "Weights") -> "CfgNode":
    """Returns the given config, or that of the published weights or of the checkpoint."""
    from ..checkpoint import zoo
    from ..config import get_cfg, merge
    from ..config.loading import stored_cfg

    config_file = args.config_file
    if not config_file and args.source.startswith(zoo.ZOO):
        config_file = zoo.get(args.source.removeprefix(zoo.ZOO)).config
    cfg = get_cfg() if config_file else stored_cfg(Path(args.source), weights.config)
    merge(cfg, config_file, args.opts)
    return cfg


def _data_set_classes(cfg: "CfgNode") -> tuple[str, ...] | None:
    """Returns the class names of the first data set in the config that is COCO 2017 or has an annotation file."""
    from ..checkpoint.coco_classes import THINGS, THINGS_AND_STUFF
    from ..data import catalog
    from ..data.load import read_classes

    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        if name.startswith("coco_2017_"):
            return THINGS_AND_STUFF if "panoptic" in name else THINGS
        if name in catalog.names() and Path(catalog.get(name).json_file).is_file():
            return read_classes(catalog.get(name), drop_root_category=cfg.DATASETS.DROP_ROOT_CATEGORY).names
    return None


def _check_target(args: argparse.Namespace) -> None:
    """Checks that the target is a file or a folder, as its format requires, and does not replace the source."""
    from ..checkpoint import locate
    from ..checkpoint.files import weights_file
    from ..errors import UserError

    if args.coco_ids and args.to != "official":
        raise UserError("--coco-ids requires --to official")
    source, target = locate(args.source), Path(args.target)
    wanted, other = ("folder", "file") if args.to == "transformers" else ("file", "folder")
    if target.exists() and target.is_dir() is not (wanted == "folder"):
        raise UserError(f"{target}: must be a {wanted}, got a {other}")
    for written in (target, target / "model.safetensors"):
        if written.exists() and any(written.samefile(read) for read in (source, weights_file(source)) if read.exists()):
            raise UserError(f"{target}: would overwrite the source {source}; choose another target")
