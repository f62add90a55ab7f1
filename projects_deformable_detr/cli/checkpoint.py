"""Converts checkpoints of other projects to this project's format, and vice versa.

python -m projects_deformable_detr.checkpoint {convert,export-official,export-hf} SRC DST --config-file F [KEY VALUE …]
"""

import argparse
import logging
import sys
from pathlib import Path

from fvcore.common.config import CfgNode
from torch import nn

from ..checkpoint import CheckpointError, Weights, fit, read_weights, save_detector, write_official
from ..checkpoint.coco_classes import THINGS, THINGS_AND_STUFF
from ..checkpoint.files import weights_file
from ..checkpoint.load import file_classes
from ..checkpoint.zoo import locate
from ..config import build_detector, get_cfg, merge
from ..config.checkpoint import LOADING_KEYS, load_options
from ..config.export import export_hugging_face
from ..config.model import criterion_config
from ..config.reading import naming_keys
from ..data import catalog
from ..data.load import read_classes
from ..errors import UserError, run_command
from .arguments import add_register_argument

_COMMANDS = {
    "convert": "Converts weights of another project to a file of this project.",
    "export-official": "Converts weights to a file of the official repositories.",
    "export-hf": "Converts weights to a folder for from_pretrained of Hugging Face transformers.",
}
_FORMATS = {
    "convert": "weights of this project",
    "export-official": "weights in the official format",
    "export-hf": "weights for transformers",
}


def main() -> int:
    """Runs the command and returns its exit status, see `run_command`."""
    return run_command("checkpoint", _main)


def _main() -> None:
    args, opts = _parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    cfg = _load_cfg(args.config_file, opts)
    for item in [*cfg.DATASETS.REGISTER, *args.register]:
        catalog.register(*item)
    if args.keep_logits:
        cfg.MODEL.DETR.KEEP_CLASS_LOGITS = True
    _check_target(args)
    weights = read_weights(args.source)
    format, count, stored = file_classes(weights, criterion_config(cfg).class_loss == "softmax")
    if format is None or format.is_backbone:
        found = "unknown weights" if format is None else "the weights of a backbone"
        raise CheckpointError(f"{args.source}: must contain a detector, got {found}; backbones need no conversion")
    names = None if cfg.MODEL.DETR.KEEP_CLASS_LOGITS else _data_set_classes(cfg)
    # 0: the classes of the data sets if they are known, otherwise those of the file.
    cfg.MODEL.DETR.NUM_CLASSES = num_classes = cfg.MODEL.DETR.NUM_CLASSES or (len(names) if names else count)
    detector = _load_detector(cfg, weights, args.source, names)
    if names is None and stored is not None and len(stored) == num_classes:
        names = tuple(name or "N/A" for name in stored)
    if args.command == "convert":
        save_detector(args.target, detector, iteration=-1, cfg_text=cfg.dump(), class_names=names)
    elif args.command == "export-official":
        write_official(args.target, detector, (names or ()) if args.coco_ids else None)
    else:
        export_hugging_face(cfg, args.target, detector, names)
    print(f"{args.target}: {_FORMATS[args.command]} with {num_classes} classes, from {args.source}")


def _load_cfg(config_file: str, opts: list[str]) -> CfgNode:
    cfg = get_cfg()
    merge(cfg, config_file, opts)
    return cfg


def _load_detector(cfg: CfgNode, weights: Weights, source: str, names: tuple[str, ...] | None) -> nn.Module:
    """Builds the detector of a config and loads weights into it."""
    detector = build_detector(cfg, weights="")
    with naming_keys(LOADING_KEYS):
        fitting, _ = fit(detector, weights, source, load_options(cfg, for_evaluation=True, class_names=names))
    detector.load_state_dict(fitting, strict=False)
    return detector.eval()


def _data_set_classes(cfg: CfgNode) -> tuple[str, ...] | None:
    """Returns the class names of the config's first data set that is COCO's or has an annotation file."""
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        if name.startswith("coco_2017_"):
            return THINGS_AND_STUFF if "panoptic" in name else THINGS
        if name in catalog.names() and Path(catalog.get(name).json_file).is_file():
            return read_classes(catalog.get(name), drop_root_category=cfg.DATASETS.DROP_ROOT_CATEGORY).names
    return None


def _check_target(args: argparse.Namespace) -> None:
    """Checks that the target is a file or a folder, as the command requires, and does not replace the source."""
    source, target = locate(args.source), Path(args.target)
    wanted, other = ("folder", "file") if args.command == "export-hf" else ("file", "folder")
    if target.exists() and target.is_dir() is not (wanted == "folder"):
        raise UserError(f"{target}: must be a {wanted}, is a {other}")
    for written in (target, target / "model.safetensors"):
        if written.exists() and any(written.samefile(read) for read in (source, weights_file(source)) if read.exists()):
            raise UserError(f"{target}: would replace the source {source}; choose another target")


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m projects_deformable_detr.checkpoint")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "source", help="checkpoint of this project, the official repositories, Hugging Face, detrex or mmdetection"
        )
        command.add_argument("target", help=f"{'folder' if name == 'export-hf' else 'file'} to write")
        command.add_argument("--config-file", required=True, metavar="FILE", help="config of the model")
        command.add_argument(
            "--keep-logits",
            action="store_true",
            help="keep the class head unchanged (91 logits in COCO's models), regardless of the config's data sets",
        )
        add_register_argument(command)
        if name == "export-official":
            command.add_argument(
                "--coco-ids",
                action="store_true",
                help="move COCO's classes to their category ids: 91 logits (250 in a panoptic model)",
            )
    args, opts = parser.parse_known_args()  # the rest are config keys and values
    flags = [word for word in opts if word.startswith("--")]
    if flags:
        parser.error(f"unknown flags: {' '.join(flags)}")
    return args, opts
