"""The official repositories: their command lines, and those in their checkpoints."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from ..checkpoint.files import read_content
from ..errors import UserError
from .launchers import LAUNCHERS, processes
from .official_rows import ROWS
from .rows import NOT_THERE, Preset, Reading, Source

_FLAGS = {"aux_loss": "--no_aux_loss"}
_NUMBERS = {"position_embedding_scale": float, "lr_drop_epochs": int}

PRESETS = {
    "main.py": Preset("deformable_detr", gpus=16),
    "r50_deformable_detr_single_scale": Preset("deformable_detr", {"num_feature_levels": 1}, 16),
    "r50_deformable_detr_single_scale_dc5": Preset("deformable_detr", {"num_feature_levels": 1, "dilation": True}, 16),
    "r50_deformable_detr": Preset("deformable_detr", gpus=16),
    "r50_deformable_detr_plus_iterative_bbox_refinement": Preset("deformable_detr", {"with_box_refine": True}, 16),
    "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage": Preset(
        "deformable_detr", {"with_box_refine": True, "two_stage": True}, 16
    ),
    "detr": Preset("detr", gpus=8),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"their command line: {message}")


def display(option: str) -> str:
    """As it is written."""
    return _FLAGS.get(option, f"--{option}")


def parse(source: Source, words: list[str]) -> Reading:
    """``main.py``'s command line, or a script of ``configs/`` and what follows it; abbreviations are understood.

    The launcher before it tells the number of GPUs.
    """
    preset, head, words = _script(words)
    gpus, warnings = processes(head)
    if head and head[-1].endswith("run_with_submitit.py"):  # DETR has it, Deformable DETR does not
        preset = "detr"
        gpus, more, words = _submitit(words)
        warnings += more
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    added = set()
    for row in source.rows:
        if row.option and row.option not in added:
            _add(parser, row.option, row.detr if row.deformable is NOT_THERE else row.deformable)
            added.add(row.option)
    known, left = parser.parse_known_args(words)
    stray = [word for word in left if word.startswith("--")] or left
    # Told of together with the other options that are not theirs.
    values = vars(known) | {word.lstrip("-").partition("=")[0]: None for word in stray}
    return Reading(values, preset, gpus, warnings)


def _script(words: list[str]) -> tuple[str, list[str], list[str]]:
    """The preset that a script of theirs tells, the words up to the program of a pasted line, and those after it."""
    programs = [index for index, word in enumerate(words) if word.endswith((".py", ".sh")) and "=" not in word]
    if not programs:
        return "", [], words
    cut = programs[-1] + 1
    name = words[cut - 1].rpartition("/")[2].removesuffix(".sh")
    return ("" if name.endswith(".py") or name in LAUNCHERS else name), words[:cut], words[cut:]


def _submitit(words: list[str]) -> tuple[int, tuple[str, ...], list[str]]:
    """GPUs, warnings and what is left of the options of DETR's launcher on a cluster."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ngpus", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=4)
    for name in ("--timeout", "--job_dir"):
        parser.add_argument(name, default=argparse.SUPPRESS)
    known, left = parser.parse_known_args(words)
    if known.ngpus < 1 or known.nodes < 1:
        raise UserError("--ngpus and --nodes must be at least 1")
    given = [f"--{name}" for name in ("timeout", "job_dir") if name in known]
    return known.ngpus * known.nodes, tuple(f"{name} is ignored: it is the launcher's" for name in given), left


def _add(parser: argparse.ArgumentParser, option: str, default: Any) -> None:
    if isinstance(default, bool):
        parser.add_argument(display(option), dest=option, action="store_false" if default else "store_true")
    elif isinstance(default, list) or option == "lr_drop_epochs":
        parser.add_argument(f"--{option}", nargs="+", type=_NUMBERS.get(option, str))
    else:
        parser.add_argument(f"--{option}", type=str if default is None else type(default))


def read(source: Source, path: str) -> Reading:
    """The command line in a checkpoint of theirs, as far as it differs from the defaults; the GPUs it tells too."""
    content = read_content(Path(path)) if Path(path).is_file() else None
    arguments = content.get("args") if isinstance(content, dict) else None
    if not isinstance(arguments, argparse.Namespace):
        raise UserError(f"{path}: no checkpoint with the official code's command line (args) in it")
    found = vars(arguments)
    model = "deformable_detr" if "num_feature_levels" in found else "detr"
    preset = "detr" if model == "detr" else "main.py"
    values = {}
    for option, value in found.items():
        row = source.row(option, model)
        if option not in source.without_effect and not (row and row.default(model) == value):
            values[option] = value
    gpus = found.get("world_size")
    values.pop("world_size", None)
    return Reading(values, preset, gpus if isinstance(gpus, int) and gpus > 0 else None)


# Written into the command line when processes start, there or by the cluster's launcher.
_OF_PROCESSES = (
    "rank gpu distributed dist_backend dist_url override_resumed_lr_drop ngpus nodes timeout job_dir partition comment "
    "use_volta32"
)

OFFICIAL = Source(
    "official",
    ROWS,
    PRESETS,
    parse,
    read,
    default="main.py",
    display=display,
    without_effect=frozenset(_OF_PROCESSES.split()),
)
