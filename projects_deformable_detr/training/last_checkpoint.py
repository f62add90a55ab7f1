"""The file ``last_checkpoint``, which names the checkpoint from which a run resumes."""

from pathlib import Path

from ..checkpoint import CheckpointError

_NAME = "last_checkpoint"  # as in fvcore
_ENGINES = {".ckpt": "standalone", ".pth": "detectron2"}


def write_last_checkpoint(path: Path) -> None:
    """Makes ``path`` the checkpoint from which runs in its folder resume. Atomic."""
    pointer = path.with_name(_NAME)
    temporary = pointer.with_name(f".{_NAME}")
    temporary.write_text(path.name)
    temporary.replace(pointer)


def find_last_checkpoint(output_dir: Path, engine: str) -> Path | None:
    """Returns the checkpoint from which a run of an engine resumes, or None if the folder has no ``last_checkpoint``.

    Raises:
        CheckpointError: if the checkpoint does not exist or was written by the other engine.
    """
    pointer = output_dir / _NAME
    if not pointer.is_file():
        return None
    name = pointer.read_text().strip()
    path = output_dir / name
    if not name:
        raise CheckpointError(f"{pointer} is empty: write the name of a checkpoint into it, or remove it")
    other = _ENGINES.get(path.suffix, engine)
    if other != engine:
        raise CheckpointError(
            f"{pointer} names {name}, a checkpoint of the {other} engine: resume with --engine {other}, or start a new "
            f"run from the weights in {path} in another output folder"
        )
    if not path.is_file():
        raise CheckpointError(f"{pointer} names {name}, which does not exist: restore it, or remove {pointer}")
    return path


def remove_last_checkpoint(output_dir: Path) -> None:
    """Removes ``last_checkpoint`` before a new run; checkpoints of an earlier run are kept."""
    (output_dir / _NAME).unlink(missing_ok=True)
