"""Other projects' checkpoints to ours, and ours to theirs.

python -m projects_deformable_detr.checkpoint {convert,export-official,export-hf} SRC DST --config-file F [KEY VALUE …]
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..cli.arguments import add_register_argument
from ..config import build_detector, get_cfg
from ..data import catalog
from ..data.load import read_classes
from ..errors import UserError
from . import coco_classes, export
from .files import file_of, read_weights, save_detector
from .keys import is_backbone, recognise
from .load import LoadOptions, file_classes, fit

_COMMANDS = {
    "convert": "other projects' weights to this project's, in one file",
    "export-official": "to the names of the official repositories, in one file",
    "export-hf": "to a folder that Hugging Face's from_pretrained reads",
}


def read_cfg(config_file: str, opts: list[str]) -> Any:
    """The config of a file and of options.

    Raises:
        UserError: if they are no config.
    """
    if Path(config_file).suffix == ".py":
        name = Path(config_file).with_suffix(".yaml").name
        raise UserError(f"config {config_file}: a LazyConfig, which is Python; give the YAML file of that name, {name}")
    cfg = get_cfg()
    try:
        cfg.merge_from_file(config_file)
        cfg.merge_from_list(opts)
    except (AssertionError, KeyError, ValueError, OSError, yaml.YAMLError) as error:
        raise UserError(f"config {config_file} {' '.join(opts)}: {error}") from error
    return cfg


def load(source: str, cfg: Any) -> tuple[nn.Module, str, tuple[str, ...] | None]:
    """A detector with a file's weights, whose they were, and its class names where they are known.

    ``MODEL.DETR.NUM_CLASSES`` 0 becomes the number of classes of the config's data sets where these are known, and
    otherwise the file's, as with ``MODEL.DETR.KEEP_CLASS_LOGITS``.

    Raises:
        UserError: if the file is of no known kind, is a backbone only, or does not fit the config.
    """
    weights = read_weights(source)
    kind = recognise(weights.state)
    if kind == "unknown" or is_backbone(kind):
        what = "of no detector that is known here" if kind == "unknown" else "a backbone, not a detector"
        raise UserError(f"{source}: these weights are {what}; a backbone needs no conversion, name it in MODEL.WEIGHTS")
    keep = cfg.MODEL.DETR.KEEP_CLASS_LOGITS
    names = None if keep else _class_names(cfg)
    count, told = file_classes(weights, _is_softmax(cfg))
    if cfg.MODEL.DETR.NUM_CLASSES == 0:
        cfg.MODEL.DETR.NUM_CLASSES = len(names) if names else count
    detector = build_detector(cfg)
    fitting, _ = fit(detector, weights, source, LoadOptions.of(cfg, for_evaluation=True, class_names=names))
    detector.load_state_dict(fitting, strict=False)
    if names is None and told is not None and len(told) == cfg.MODEL.DETR.NUM_CLASSES:
        names = tuple(name or "N/A" for name in told)
    return detector.eval(), kind, names


def _is_softmax(cfg: Any) -> bool:
    loss = cfg.MODEL.DETR.CLASS_LOSS
    return loss == "softmax" or (loss == "auto" and cfg.MODEL.META_ARCHITECTURE == "DETR")


def _class_names(cfg: Any) -> tuple[str, ...] | None:
    """Of the first of the config's data sets that is COCO's or has its file here."""
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        if name.startswith("coco_2017_"):
            return coco_classes.THINGS_AND_STUFF if "panoptic" in name else coco_classes.THINGS
        if name in catalog.names() and Path(catalog.get(name).json_file).is_file():
            return read_classes(catalog.get(name)).names
    return None


def main() -> int:
    """Returns the exit status: 0, or 2 for input that the message on stderr explains."""
    args, opts = _parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        for item in args.register:
            catalog.register(*item)
        cfg = read_cfg(args.config_file, opts)
        if args.keep_logits:
            cfg.MODEL.DETR.KEEP_CLASS_LOGITS = True
        _check_target(args)
        detector, kind, names = load(args.source, cfg)
        classes = cfg.MODEL.DETR.NUM_CLASSES
        if args.command == "convert":
            save_detector(args.target, detector, iteration=-1, cfg_text=cfg.dump(), class_names=names)
        elif args.command == "export-official":
            export.write_official(args.target, detector, (names or ()) if args.coco_ids else None)
        else:
            export.write_hugging_face(args.target, detector, cfg, names)
        print(f"{args.target}: {kind} weights with {classes} classes")
    except UserError as error:
        print(f"checkpoint: {error}", file=sys.stderr)
        return 2
    return 0


def _check_target(args: argparse.Namespace) -> None:
    """Refuses to write over what is read, by whatever path; and into a folder's name, where a file is to be."""
    source, target = Path(args.source), Path(args.target)
    is_folder = args.command == "export-hf"
    if target.exists() and target.is_dir() is not is_folder:
        raise UserError(
            f"{target}: it is a {'file' if is_folder else 'folder'}: name a {'folder' if is_folder else 'file'}"
        )
    for written in (target, target / "model.safetensors"):
        if written.exists() and any(written.samefile(read) for read in (source, file_of(source)) if read.exists()):
            raise UserError(f"{target}: it is the source {source}, which would be written over: name another")


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m projects_deformable_detr.checkpoint")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"Rewrites {text}.")
        command.add_argument(
            "source", help="a file of this project's, official, Hugging Face's, detrex's or mmdetection's"
        )
        command.add_argument("target", help="the folder to write" if name == "export-hf" else "the file to write")
        command.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
        command.add_argument(
            "--keep-logits",
            action="store_true",
            help="take the class head as it is (91 logits of COCO's models), whatever the config's data sets are",
        )
        add_register_argument(command)
        if name == "export-official":
            command.add_argument(
                "--coco-ids",
                action="store_true",
                help="put COCO's classes back at their category ids: 91 logits (250 of a panoptic model)",
            )
    args, opts = parser.parse_known_args()  # what is left are config keys and values
    flags = [word for word in opts if word.startswith("--")]
    if flags:
        parser.error(f"unknown flags: {' '.join(flags)}")
    return args, opts


if __name__ == "__main__":
    sys.exit(main())
