"""python -m projects_deformable_detr.checkpoint convert SRC DST --config-file F [KEY VALUE …]"""

import argparse
import sys

from ..config import get_cfg
from ..errors import UserError
from ..modeling import build_detector
from .files import read_state, save_detector
from .keys import recognise, to_ours
from .load import load_weights


def convert(source: str, target: str, config_file: str, opts: list[str]) -> str:
    """Rewrites a whole detector's weights as this project's, and says whose they were.

    ``MODEL.DETR.NUM_CLASSES`` follows the file unless it is set.

    Raises:
        UserError: if the file is of no known kind, is a backbone only, or does not fit the config.
    """
    cfg = get_cfg()
    try:
        cfg.merge_from_file(config_file)
        cfg.merge_from_list(opts)
    except (AssertionError, KeyError, ValueError, OSError) as error:
        raise UserError(f"config {config_file} {' '.join(opts)}: {error}") from error
    state = read_state(source)
    kind = recognise(state)
    if kind in ("unknown", "resnet"):
        what = "a backbone, not a detector" if kind == "resnet" else "of no detector that is known here"
        raise UserError(f"{source}: these weights are {what}; a backbone needs no conversion, name it in MODEL.WEIGHTS")
    if cfg.MODEL.DETR.NUM_CLASSES == 0:
        cfg.MODEL.DETR.NUM_CLASSES = len(to_ours(state, kind)["decoder.class_heads.0.bias"])
    detector = build_detector(cfg)
    load_weights(detector, source, allow_partial=cfg.MODEL.DETR.ALLOW_PARTIAL_WEIGHTS)
    save_detector(target, detector, iteration=-1, cfg_text=cfg.dump())
    return f"{target}: {kind} weights with {cfg.MODEL.DETR.NUM_CLASSES} classes"


def main() -> int:
    """Returns the exit status: 0, or 2 for input that the message on stderr explains."""
    parser = argparse.ArgumentParser(prog="python -m projects_deformable_detr.checkpoint")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("convert", help="other projects' weights to this project's")
    command.add_argument("source", help="official or Hugging Face Deformable DETR weights, or this project's")
    command.add_argument("target", help="the file to write")
    command.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    args, opts = parser.parse_known_args()  # what is left are config keys and values
    flags = [word for word in opts if word.startswith("--")]
    if flags:
        parser.error(f"unknown flags: {' '.join(flags)}")
    try:
        print(convert(args.source, args.target, args.config_file, opts))
    except UserError as error:
        print(f"checkpoint: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
