"""Console script ``deformable-detr``, also ``python -m projects_deformable_detr``.

Each subcommand is a module in this folder that defines the string ``HELP``, the function ``add_arguments(parser)``,
which must not import heavy packages, and the function ``run(args)``, which returns an exit status, or None for 0.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import shtab

from ..errors import run_command
from ..version import __version__

PROG = "deformable-detr"
COMMANDS = {
    "train": "train",
    "predict": "predict",
    "val": "val",
    "info": "info",
    "export": "export",
    "convert-data": "convert_data",
    "convert": "convert",
    "draw": "draw",
    "shapes": "shapes",
    "demo": "demo",
}


def console() -> int:
    """Runs the command line of the current process and returns the exit status, see `run_command`."""
    if len(sys.argv) > 1 and sys.argv[1] in ("train", "demo"):
        _limit_spinning()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        arguments: command-line arguments without the program name. Default: those of the current process.

    Returns:
        The exit status, see `run_command`.
    """
    modules = {name: importlib.import_module(f".{module}", __package__) for name, module in COMMANDS.items()}
    args = _parser(modules).parse_args(arguments)
    return run_command(f"{PROG} {args.command}", lambda: modules[args.command].run(args))


def _parser(modules: dict[str, ModuleType]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Trains, evaluates and runs Deformable DETR and DETR detectors.",
        epilog=f"{PROG} COMMAND --help describes a command. Completion in bash: {PROG} --print-completion bash > "
        f"~/.local/share/bash-completion/completions/{PROG}",
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    shtab.add_argument_to(parser, "--print-completion", help="print a completion script for a shell")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in modules.items():
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
    return parser


def _limit_spinning() -> None:
    """Shortens the busy-wait of idle OpenMP threads, which otherwise compete with the data loader.

    With quickstart on 2 cores, an iteration takes 0.17 s (0.26 s without spinning; several times longer with the
    default under load). GNU OpenMP reads the variable when torch is imported, so the process is restarted if torch has
    already been imported.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = "10000"
        if "torch" in sys.modules:
            os.execv(sys.executable, [sys.executable, "-m", __name__.partition(".")[0], *sys.argv[1:]])
