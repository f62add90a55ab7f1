"""Checks and prepares the output folder of a run, and writes its log."""

import fcntl
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from ..checkpoint.files import checkpoint_in
from ..engine import is_main_process
from ..errors import UserError
from .last_checkpoint import has_last_checkpoint, remove_last_checkpoint, remove_temporary_files

logger = logging.getLogger(__name__)
_METRICS = "metrics.json"
_CHECKPOINT = re.compile(r"model_(?:\d{7,}\.(?:ckpt|pth)|(?:final|best)\.pth)")
_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\..*")  # time of creation in seconds
_START = int(time.time())
_LOCK_SECONDS = 10.0  # data loader workers of a killed run end, and release its lock, within a few seconds


class LogFormatter(logging.Formatter):
    """Formats a record as its time and message, with the level of warnings and errors between them."""

    def __init__(self) -> None:
        super().__init__("[%(asctime)s] %(message)s", "%m/%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Returns the first line of a record."""
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        return f"[{record.asctime}] {level}{record.message}"


def check_output_dir(folder: Path, *, resume: bool, overwrite: bool, weights: str = "") -> None:
    """Checks that the output folder is writable and has a checkpoint to resume from, or no files of another run.

    Args:
        folder: output folder, which need not exist.
        resume: whether the run continues from the last checkpoint.
        overwrite: whether the run may remove the files of an earlier run.
        weights: file or output folder of the initial weights, which the run must not remove; may also be a name.

    Raises:
        UserError: if the folder cannot be written, if there is no checkpoint to resume from, if a new run would mix
            its files with those of an earlier run, or if it would remove its initial weights.
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
    if resume:
        return
    found = _checkpoints(folder)
    if not overwrite and found:
        names = ", ".join(path.name for path in found[:4])
        first = "continue it with --resume, " if has_last_checkpoint(folder) else ""
        raise UserError(
            f"{folder} has files of an earlier run ({names}{', …' if len(found) > 4 else ''}): {first}"
            "choose another `output_dir`, or remove these files with --overwrite"
        )
    initial = checkpoint_in(Path(weights))
    if overwrite and weights and initial.is_file() and any(path.samefile(initial) for path in found):
        raise UserError(
            f"--overwrite would remove `weights={weights}`, from which the run starts: choose another `output_dir`, or "
            "move the file"
        )


def start_run(folder: Path, cfg_text: str, *, resume: bool, overwrite: bool) -> None:
    """Prepares the output folder immediately before the first iteration.

    Removes temporary files of interrupted writes. A new run removes the files of an earlier one if ``overwrite``,
    except TensorBoard's files that are newer than this process. Metrics of a run without checkpoints are moved to
    ``metrics.json.old``. Writes ``config.yaml``.

    Raises:
        UserError: as in `check_output_dir`, for example if another run has written to the folder since that check.
    """
    check_output_dir(folder, resume=resume, overwrite=overwrite)
    remove_temporary_files(folder)
    if not resume:
        _clear(folder, overwrite)
    (folder / "config.yaml").write_text(cfg_text, encoding="utf-8")


def _clear(folder: Path, overwrite: bool) -> None:
    metrics = folder / _METRICS
    if metrics.is_file() and metrics.stat().st_size:
        if not overwrite:
            with (folder / f"{_METRICS}.old").open("ab") as file:
                file.write(metrics.read_bytes())
        metrics.write_bytes(b"")  # a logger may have opened it
    if overwrite:
        for path in [*_checkpoints(folder), *_event_files(folder)]:
            logger.info("Removing %s of an earlier run", path)
            path.unlink()
        remove_last_checkpoint(folder)


def _checkpoints(folder: Path) -> list[Path]:
    """Returns the files in a folder that have the names of checkpoints and detectors of a run."""
    return sorted(path for path in folder.glob("model_*") if _CHECKPOINT.fullmatch(path.name) and path.is_file())


def _event_files(folder: Path) -> list[Path]:
    """Returns TensorBoard's files that are older than this process."""
    numbers = {path: _EVENTS.fullmatch(path.name) for path in folder.glob("events.out.tfevents.*")}
    return sorted(path for path, match in numbers.items() if match and int(match[1]) < _START)


@contextmanager
def locked(folder: Path, *, enabled: bool = True) -> Iterator[None]:
    """Prevents other runs from writing to an output folder inside the block. The lock ends with the process.

    Args:
        folder: output folder, which is created if necessary.
        enabled: whether to lock the folder.

    Raises:
        UserError: if another run has locked the folder.
    """
    if not enabled:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                raise UserError(f"another run is writing to {folder}: wait until it ends, or change `output_dir`")
            time.sleep(0.1)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # data loader workers have copies of the handle
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        logger.info("The output folder is not locked (%s): start one run in it at a time", error.strerror)
    return True


@contextmanager
def log_unless_error(folder: Path) -> Iterator[None]:
    """Prints the log messages of the block and, if it succeeds, appends them to ``log.txt`` in the folder.

    The folder is created if necessary. An invalid command leaves the folder of an earlier run unchanged. Under
    ``torchrun``, which executes the block in every process, this applies to rank 0, and other ranks log nothing.
    """
    package = logging.getLogger(__name__.partition(".")[0])
    package.setLevel(logging.INFO)
    buffer = MemoryHandler(capacity=1_000_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(LogFormatter())
    # Handlers of an earlier run in this process already print messages.
    added = [buffer] if package.handlers or not is_main_process() else [buffer, console]
    for handler in added:
        package.addHandler(handler)
    try:
        yield
        folder.mkdir(parents=True, exist_ok=True)
        if not is_main_process():
            return
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        file.setFormatter(LogFormatter())
        buffer.setTarget(file)
        buffer.flush()
        file.close()
    finally:
        for handler in added:
            package.removeHandler(handler)
            handler.close()
