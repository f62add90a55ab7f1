"""Their options to a config of ours.

python -m projects_deformable_detr.migrate {official,detrex,mmdetection,transformers} [--config NAME]
    [--from-checkpoint FILE] [--gpus N] [--images N] [--ignore OPTION]… [--out FILE [--overwrite]] [-- THEIR OPTIONS]
python -m projects_deformable_detr.migrate --write-docs docs/migrating.md
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from ..errors import UserError
from . import docs
from .rows import COCO_IMAGES, Reading, Source, plain
from .sources import SOURCES
from .translate import Translation, translate
from .write import as_lines, write_yaml

_MODELS = {"detr": "DETR", "deformable_detr": "Deformable DETR"}


def argument_parser() -> argparse.ArgumentParser:
    """Ours; what follows ``--`` on the command line is theirs."""
    parser = argparse.ArgumentParser(
        prog="python -m projects_deformable_detr.migrate",
        description="Translates another project's options: prints the arguments of train_net.py, or writes a config.",
        epilog="Their options follow after --, as on their command line.",
    )
    parser.add_argument("source", nargs="?", choices=SOURCES, help="whose options they are")
    parser.add_argument("--config", default="", metavar="NAME", help="their config that the options change")
    parser.add_argument(
        "--from-checkpoint",
        metavar="FILE",
        help="a file that holds their options: official and mmdetection: a checkpoint, mmdetection: the .py that it "
        "writes beside its checkpoints, transformers: config.json or its folder",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="processes of theirs, each with a batch (default: their launcher's or config's)",
    )
    parser.add_argument(
        "--images", type=int, default=COCO_IMAGES, metavar="N", help="in the training set (default: COCO's %(default)s)"
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="OPTION",
        help="leave an option out, named without its dashes (repeatable)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a config, whose _BASE_ is the nearest of ours")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--write-docs", type=Path, metavar="FILE", help="renew the tables between the marks of FILE")
    return parser


def main(words: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for input that the message on stderr explains."""
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    args, theirs = argument_parser().parse_args(words[:cut]), words[cut + 1 :]
    try:
        if args.write_docs:
            docs.write(args.write_docs)
        elif args.source:
            _migrate(args, theirs)
        else:
            raise UserError(f"name a source: {', '.join(SOURCES)}")
    except UserError as error:
        print(f"migrate: {error}", file=sys.stderr)
        return 2
    return 0


def _migrate(args: argparse.Namespace, words: list[str]) -> None:
    source = SOURCES[args.source]
    if args.gpus is not None and args.gpus < 1 or args.images < 1:
        raise UserError("--gpus and --images must be at least 1")
    translation = read_and_translate(source, args, words)
    _check_values(translation)
    for note in translation.notes:
        print(f"migrate: {note}", file=sys.stderr)
    for warning in translation.warnings:
        print(f"migrate: WARNING: {warning}", file=sys.stderr)
    if args.out is None:
        print("\n".join(as_lines(translation)))
        return
    told = f"From {source.name} by python -m projects_deformable_detr.migrate.\n" + "\n".join(translation.notes)
    write_yaml(args.out, translation, told, overwrite=args.overwrite)
    flags = "".join(f" {flag}" for flag in translation.flags)
    print(f"train_net.py --config-file {shlex.quote(str(args.out))}{flags}")


def _check_values(translation: Translation) -> None:
    """What no training can have.

    Raises:
        UserError: naming our key, which the table of options has beside theirs.
    """
    values = {"SOLVER.BASE_LR": 1.0, "SOLVER.MAX_ITER": 1, "MODEL.DETR.HIDDEN_DIM": 256, "MODEL.DETR.NHEADS": 8}
    values |= {"MODEL.DETR.NUM_OBJECT_QUERIES": 1, "SOLVER.IMS_PER_BATCH": 1}
    values |= {key: value for key, value in translation.settings.items() if key in values}
    wrong = [f"{key} would be {value}" for key, value in values.items() if not value > 0]
    width, heads = values["MODEL.DETR.HIDDEN_DIM"], values["MODEL.DETR.NHEADS"]
    if not wrong and width % heads:
        wrong = [f"MODEL.DETR.HIDDEN_DIM would be {width}, no multiple of MODEL.DETR.NHEADS {heads}"]
    if wrong:
        raise UserError(
            f"{'; '.join(wrong)}: correct the option that gives it (docs/migrating.md has each beside its key)"
        )


def read_and_translate(source: Source, args: argparse.Namespace, words: list[str]) -> Translation:
    """Their file first, then what their command line changes.

    Raises:
        UserError: as `translate`, and where ``--config``, the file and the command line are of different configs.
    """
    file = Reading({})
    if args.from_checkpoint:
        if source.read is None:
            raise UserError(f"{source.name}'s files hold no options that can be read: name a config (--config)")
        file = source.read(source, args.from_checkpoint)
    line = source.parse(source, words)
    if args.config and line.preset and args.config != line.preset:
        raise UserError(
            f"--config {args.config} contradicts the command line, which names {line.preset}: leave one out"
        )
    named = args.config or line.preset
    if named and file.preset:
        _check_file(source, args.from_checkpoint, file, f"--config {named}" if args.config else named, named)
    told = line.gpus or file.gpus
    found = translate(
        source,
        named or file.preset or source.default,
        {**file.values, **line.values},
        gpus=args.gpus or told,
        images=args.images,
        ignored=tuple(args.ignore),
    )
    notes = found.notes
    if args.gpus and told and args.gpus != told:
        notes += (f"--gpus {args.gpus} counts, not the {told} GPUs that their {'line' if line.gpus else 'file'} tells",)
    return dataclasses.replace(found, notes=notes, warnings=line.warnings + found.warnings)


def _check_file(source: Source, path: str, file: Reading, told: str, name: str) -> None:
    """A file has a whole config: one that is named besides must not say otherwise."""
    named, read = source.presets.get(name), source.presets[file.preset]
    if named is None:
        return  # `translate` tells of it
    if named.model != read.model:
        raise UserError(f"{path}: its model is {_MODELS[read.model]}, which contradicts {told}, {_MODELS[named.model]}")
    for option, value in named.values.items():
        row = source.row(option, named.model)
        found = file.values.get(option, read.values.get(option, row.default(named.model) if row else None))
        if plain(found) != plain(value):
            raise UserError(
                f"{path}: {source.display(option)} is {found!r} in it and {value!r} in {told}: leave that config out"
            )


if __name__ == "__main__":
    sys.exit(main())
