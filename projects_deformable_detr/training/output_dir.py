"""Checks and prepares the output folder of a run, and writes its log."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from ..errors import UserError
from .last_checkpoint import has_last_checkpoint, remove_last_checkpoint, remove_temporary_files

logger = logging.getLogger(__name__)
_METRICS = "metrics.json"
_FORMAT = logging.Formatter("[%(asctime)s] %(message)s", "%m/%d %H:%M:%S")


def check_output_dir(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Checks that the output folder is writable and has a checkpoint to resume from, or no files of another run.

    Args:
        folder: output folder, which need not exist.
        resume: whether the run continues from the last checkpoint.
        overwrite: whether the run may remove the files of an earlier run.

    Raises:
        UserError: if the folder cannot be written, if there is no checkpoint to resume from, or if a new run would mix
            its files with those of an earlier run.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"`output_dir={folder}`: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"`output_dir={folder}`: no permission to write to {existing}")
    if resume and not has_last_checkpoint(folder):
        raise UserError(
            f"there is no checkpoint to resume from in {folder}: check `output_dir`, or start without --resume"
        )
    if not resume and not overwrite and (found := _files_of_a_run(folder)):
        names = ", ".join(path.name for path in found[:4])
        raise UserError(
            f"{folder} has files of an earlier run ({names}{', …' if len(found) > 4 else ''}): continue it with "
            "--resume, choose another `output_dir`, or remove these files with --overwrite"
        )


def start_run(folder: Path, cfg_text: str, *, is_new: bool) -> None:
    """Prepares the output folder immediately before the first iteration.

    Removes temporary files of interrupted writes and, for a new run, the files of an earlier one. Writes
    ``config.yaml``.
    """
    remove_temporary_files(folder)
    if is_new:
        for path in _files_of_a_run(folder):
            if path.name == _METRICS:
                path.write_bytes(b"")  # a logger may have opened it
            else:
                logger.info("Removing %s of an earlier run", path)
                path.unlink()
        remove_last_checkpoint(folder)
    (folder / "config.yaml").write_text(cfg_text)


def _files_of_a_run(folder: Path) -> list[Path]:
    """Returns the checkpoints and, unless it is empty, the metrics file."""
    checkpoints = [path for suffix in ("ckpt", "pth") for path in folder.glob(f"model_*.{suffix}")]
    metrics = folder / _METRICS
    return [*sorted(checkpoints), *([metrics] if metrics.is_file() and metrics.stat().st_size else [])]


@contextmanager
def log_unless_error(folder: Path) -> Iterator[None]:
    """Prints the log messages of the block and, if it succeeds, appends them to ``log.txt`` in the folder.

    The folder is created if necessary. An invalid command leaves the folder of an earlier run unchanged.
    """
    package = logging.getLogger(__name__.partition(".")[0])
    package.setLevel(logging.INFO)
    buffer = MemoryHandler(capacity=1_000_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(_FORMAT)
    # Handlers of an earlier run in this process already print.
    added = [buffer] if package.handlers else [buffer, console]
    for handler in added:
        package.addHandler(handler)
    try:
        yield
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "log.txt")
        file.setFormatter(_FORMAT)
        buffer.setTarget(file)
        buffer.flush()
        file.close()
    finally:
        for handler in added:
            package.removeHandler(handler)
            handler.close()
