"""Console script ``deformable-detr``, also ``python -m projects_deformable_detr``.

Each subcommand is a module in this folder that defines the string ``HELP``, the function ``add_arguments(parser)``,
which must not import heavy packages, and the function ``run(args)``, which returns an exit status, or None for 0.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import shtab

from ..errors import run_command
from ..version import __version__
from .arguments import ArgumentParser

PROG = "deformable-detr"
COMMANDS = {
    "train": "train",
    "predict": "predict",
    "explain": "explain",
    "serve": "serve",
    "val": "val",
    "info": "info",
    "export": "export",
    "convert-data": "convert_data",
    "convert": "convert",
    "draw": "draw",
    "report": "report",
    "shapes": "shapes",
    "demo": "demo",
}
# Commands that compute with PyTorch.
_RUN_MODELS = ("train", "predict", "explain", "serve", "val", "export", "report", "demo")


def console() -> int:
    """Runs the command line of the current process and returns the exit status, see `run_command`."""
    if len(sys.argv) > 1 and sys.argv[1] in _RUN_MODELS:
        _limit_spinning()
    _show_downloads()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        arguments: command-line arguments without the program name. Default: those of the current process.

    Returns:
        The exit status, see `run_command`.
    """
    modules = {name: importlib.import_module(f".{module}", __package__) for name, module in COMMANDS.items()}
    words = sys.argv[1:] if arguments is None else arguments
    args = _parser(modules, for_completion="--print-completion" in words[:1]).parse_args(words)
    return run_command(f"{PROG} {args.command}", lambda: modules[args.command].run(args))


def _parser(modules: dict[str, ModuleType], *, for_completion: bool) -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog=PROG,
        description="Trains, evaluates and runs Deformable DETR and DETR detectors.",
        epilog=f"{PROG} COMMAND --help describes a command. Completion in bash: {PROG} --print-completion bash > "
        f"~/.local/share/bash-completion/completions/{PROG}; in zsh: {PROG} --print-completion zsh > "
        f"FOLDER/_{PROG}, with a FOLDER in $fpath",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    preamble = _completion_functions() if for_completion else ""
    shtab.add_argument_to(parser, "--print-completion", help="print a completion script for a shell", preamble=preamble)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in modules.items():
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        for action in command._actions if for_completion else ():
            if action.nargs != 0 and not action.choices:
                is_name = action.dest == "config_file" or (action.dest == "weights" and name != "train")
                function = dict.fromkeys(("bash", "zsh"), f"_deformable_detr_{action.dest}") if is_name else {}
                action.complete = shtab.FILE | function  # type: ignore[attr-defined]
    return parser


def _completion_functions() -> dict[str, str]:
    """Returns shell functions that complete files and the names of configs and published weights."""
    from ..config.recipes import names
    from ..zoo import ENTRIES

    known = {"config_file": names(), "weights": [name for name, entry in ENTRIES.items() if entry.config]}
    lines: dict[str, list[str]] = {"bash": [], "zsh": []}
    for argument, words in known.items():
        text = " ".join(words)
        lines["bash"].append(f"_deformable_detr_{argument}() {{ compgen -W '{text}' -- $1; _shtab_compgen_files $1; }}")
        lines["zsh"].append(f"_deformable_detr_{argument}() {{ compadd -- {text}; _files; }}")
    return {shell: "\n".join(functions) for shell, functions in lines.items()}


def _show_downloads() -> None:
    """Prints log messages about downloads to stderr, unless the command has a log that includes them."""
    package = __name__.partition(".")[0]
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not logging.getLogger(package).hasHandlers())
    downloads = logging.getLogger(f"{package}.zoo")
    downloads.setLevel(logging.INFO)
    downloads.addHandler(handler)


def _limit_spinning() -> None:
    """Shortens the busy-wait of idle OpenMP threads, which otherwise compete with other threads and processes.

    Measurements are in docs/swap.md. GNU OpenMP reads the variable when torch is imported, so the process is restarted
    if torch has already been imported.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = "300"
        if "torch" in sys.modules:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
