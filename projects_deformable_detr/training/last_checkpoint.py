"""Checkpoints in the output folder of a run: selection on resuming, deletion of old ones and of temporary files."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..checkpoint import CLASS_NAMES, CheckpointError, atomic_file, read_checkpoint
from ..checkpoint.classes import shorten
from ..checkpoint.load import check_finite
from ..data.load import log_once

logger = logging.getLogger(__name__)
_NAME = "last_checkpoint"  # as in fvcore
_FINISHED = "finished"
_ENGINES = {".ckpt": "standalone", ".pth": "detectron2"}
_PERIODIC = re.compile(r"model_(\d{7,})\.(?:ckpt|pth)")
# Temporary names of `atomic_file`.
_TEMPORARY = re.compile(rf"\.(?:model_\w+\.(?:ckpt|pth)|failed_step_\w+\.pth|{_NAME}|{_FINISHED})\.\w{{8}}")


def write_last_checkpoint(path: Path) -> None:
    """Atomically marks ``path`` as the checkpoint from which runs in its folder resume, and the run as unfinished."""
    path.with_name(_FINISHED).unlink(missing_ok=True)
    with atomic_file(path.with_name(_NAME)) as file:
        file.write(path.name.encode())


def write_finished(output_dir: Path) -> None:
    """Atomically marks the run as finished: its last checkpoint needs neither training nor evaluation."""
    name = (output_dir / _NAME).read_bytes()
    with atomic_file(output_dir / _FINISHED) as file:
        file.write(name)


def has_last_checkpoint(output_dir: Path) -> bool:
    """Returns whether a folder has a checkpoint from which a run can resume."""
    return (output_dir / _NAME).is_file()


def find_last_checkpoint(
    output_dir: Path, engine: str, class_names: Sequence[str] | None = None, *, for_evaluation: bool = False
) -> Path | None:
    """Returns the checkpoint from which a run of an engine resumes, or None if the folder has no ``last_checkpoint``.

    If the checkpoint is corrupt, the one before it is returned after a warning.

    Args:
        output_dir: output folder of the run.
        engine: ``"detectron2"`` or ``"standalone"``.
        class_names: names of the classes of the data sets, if known.
        for_evaluation: whether to accept a checkpoint with other classes, which are mapped by name on loading.

    Raises:
        CheckpointError: if ``last_checkpoint`` is empty, if its checkpoint does not exist, was written by the other
            engine or has other classes, or if all checkpoints are corrupt.
    """
    pointer = output_dir / _NAME
    if not pointer.is_file():
        return None
    name = pointer.read_text().strip()
    path = output_dir / name
    earlier = _periodic_checkpoints(path)[::-1]
    if not name:
        found = ", ".join(shorten(sorted(path.name for path in output_dir.glob("model_*")))) or "none"
        raise CheckpointError(
            f"{pointer} is empty: write the name of a checkpoint in the folder ({found}) into it, or remove it"
        )
    other = _ENGINES.get(path.suffix, engine)
    if other != engine:
        raise CheckpointError(
            f"{pointer} names {name}, a checkpoint of the {other} engine: resume with --engine {other}, or start a new "
            f"run from the weights in {path} in another output folder"
        )
    if not path.is_file():
        raise CheckpointError(f"{pointer} names {name}, which does not exist: restore it, or remove {pointer}")
    problem = None
    for candidate in (path, *earlier):
        try:
            content = read_checkpoint(candidate, mmap=True)
        except CheckpointError as error:
            log_once(str(error))
            problem = problem or error
            continue
        if not for_evaluation:
            _check_classes(candidate, content.get(CLASS_NAMES) if isinstance(content, dict) else None, class_names)
        if problem:
            log_once(f"The last checkpoint is corrupt: resuming from the one before it, {candidate}")
        return candidate
    raise CheckpointError(f"{problem}; {output_dir} has no earlier checkpoint: start a new run in another folder")


def is_finished(path: Path, iterations: int, max_iter: int, *, evaluates: bool) -> bool:
    """Logs the checkpoint from which a run resumes; returns whether nothing is left to do.

    Args:
        path: the checkpoint.
        iterations: its number of iterations.
        max_iter: number of iterations of the run.
        evaluates: whether the run ends with an evaluation.
    """
    logger.info("Resuming from %s after %d of %d iterations", path, iterations, max_iter)
    if iterations < max_iter:
        return False
    marker = path.with_name(_FINISHED)
    finished = not evaluates or (marker.is_file() and marker.read_bytes().strip() == path.name.encode())
    rest = "the run is finished; --eval-only --resume evaluates it again" if finished else "the run is only evaluated"
    logger.warning("No iterations are left: %s. Increase the number of iterations to continue", rest)
    return finished


def check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Checks that the weights of a checkpoint are finite and have the keys and shapes of the model.

    Raises:
        CheckpointError: if not; the message lists the differences.
    """
    check_finite(dict(state), "the checkpoint to resume from")
    own = model.state_dict()
    problems = shorten([f"missing in the file: {key}" for key in own if key not in state])
    problems += shorten([f"unexpected in the file: {key}" for key in state if key not in own])
    shapes = [(key, tuple(state[key].shape), tuple(own[key].shape)) for key in own if key in state]
    problems += shorten(
        [f"{key}: {there} in the file, {here} in the model" for key, there, here in shapes if there != here]
    )
    if problems:
        raise CheckpointError(
            "the checkpoint to resume from is for a different model: use the config of the run, or start a new run "
            "from these weights in another `output_dir`:\n  " + "\n  ".join(problems)
        )


def _periodic_checkpoints(last: Path) -> list[Path]:
    """Returns the checkpoints before ``last`` with its suffix, in the order of their iterations."""
    numbers = {path: _PERIODIC.fullmatch(path.name) for path in last.parent.glob(f"model_*{last.suffix}")}
    found = {path: int(match[1]) for path, match in numbers.items() if match}
    return sorted((path for path in found if found[path] < found.get(last, 10**9)), key=lambda path: found[path])


def _check_classes(path: Path, stored: Sequence[str] | None, wanted: Sequence[str] | None) -> None:
    """Raises `CheckpointError` if the classes of a checkpoint and of the data sets differ in names or order."""
    if not stored or not wanted or list(stored) == list(wanted):
        return
    raise CheckpointError(
        f"{path} has {len(stored)} classes ({', '.join(shorten(stored))}), the data sets have {len(wanted)} "
        f"({', '.join(shorten(wanted))}): a run resumes with the same classes in the same order. Start a new run from "
        "these weights in another output folder, which maps classes by name"
    )


def remove_last_checkpoint(output_dir: Path) -> None:
    """Removes the files ``last_checkpoint`` and ``finished`` before a new run, but no checkpoints."""
    for name in (_NAME, _FINISHED):
        (output_dir / name).unlink(missing_ok=True)


def remove_old_checkpoints(last: Path, written: list[Path], keep: int) -> None:
    """Adds ``last``, the file just written, to ``written`` and deletes all but the ``keep`` newest files of this list.

    Only periodic checkpoints of this process are deleted; those of earlier processes, ``model_final.pth`` and
    ``model_best.pth`` are kept.
    """
    if not _PERIODIC.fullmatch(last.name):
        return
    written[:] = [*(path for path in written if path != last), last]
    while len(written) > keep:
        path = written.pop(0)
        logger.info("Removing %s: only the last %d checkpoints are kept", path, keep)
        path.unlink(missing_ok=True)


def remove_temporary_files(output_dir: Path) -> None:
    """Deletes the temporary files of interrupted writes in a folder."""
    for path in output_dir.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            logger.info("Removing %s, the temporary file of an interrupted write", path)
            path.unlink(missing_ok=True)
