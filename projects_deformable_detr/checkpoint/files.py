"""Reads checkpoint files without executing code, and writes them atomically."""

import argparse
import json
import logging
import os
import pickle
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..zoo import locate
from .pickles import UnsafePickleError, read_pickle, safe_globals, with_tensors

CLASS_NAMES = "class_names"  # key of the class names in files of this project
CONFIG = "config"  # key of the config in YAML format
_IN_OUTPUT_FOLDER = ("model_best.pth", "model_final.pth")
_IN_HUGGING_FACE_FOLDER = ("model.safetensors", "pytorch_model.bin")

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """Raised for a checkpoint that cannot be read or written, or does not match the model."""


@dataclass(frozen=True)
class Weights:
    """Content of a checkpoint file.

    Attributes:
        state: state dict on the CPU.
        class_names: names of the classes, if the file or a config next to it stores them.
        config: config in YAML format, if the file stores it.
        iteration: index of the last training iteration, if the file stores it; -1 for converted weights.
    """

    state: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None
    config: str | None = None
    iteration: int | None = None


def read_weights(path: str | Path) -> Weights:
    """Reads the weights in a ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.safetensors`` or ``.pkl`` file to the CPU.

    Weights are read from the top level, ``model`` (Detectron2, the official repositories) or ``state_dict``
    (Lightning). Folders are also accepted: an output folder, see `checkpoint_in`, or a Hugging Face folder with a
    single file of weights, whose class names are read from ``config.json``. ``zoo://NAME`` refers to a published
    checkpoint, see `zoo`.

    Raises:
        DownloadError: if a published checkpoint cannot be downloaded.
        CheckpointError: if the file does not exist, is corrupt, contains no weights, or contains anything other than
            tensors, arrays and plain values.
    """
    path = weights_file(locate(path))
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    config, iteration = (content.get(key) if isinstance(content, dict) else None for key in (CONFIG, "iteration"))
    return Weights(
        _find_weights(path, content),
        _class_names(path, content),
        config if isinstance(config, str) else None,
        iteration if isinstance(iteration, int) else None,
    )


def weights_file(path: Path) -> Path:
    """Returns ``path``, or the file of weights in a folder; raises `CheckpointError` if there is none."""
    folder, path = path, checkpoint_in(path)
    if path != folder:
        logger.info("Loading %s", path)
    if path.is_dir():
        found = [path / name for name in _IN_HUGGING_FACE_FOLDER if (path / name).is_file()]
        if not found:
            names = ", ".join([*_IN_OUTPUT_FOLDER, *_IN_HUGGING_FACE_FOLDER])
            raise CheckpointError(f"{path}: folder contains no checkpoint ({names}); choose a file in it")
        return found[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: checkpoint file does not exist")
    return path


def checkpoint_in(path: Path) -> Path:
    """Returns the best, final or last checkpoint in an output folder; other paths are returned unchanged."""
    if not path.is_dir():
        return path
    candidates = [path / name for name in _IN_OUTPUT_FOLDER]
    if (path / "last_checkpoint").is_file():
        candidates.append(path / (path / "last_checkpoint").read_text(encoding="utf-8").strip())
    return next((file for file in candidates if file.is_file()), path)


def save_detector(
    path: str | Path,
    detector: nn.Module | Mapping[str, Tensor],
    *,
    iteration: int,
    cfg_text: str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Atomically writes a checkpoint that both engines and `load_weights` can read.

    Args:
        path: output file, usually ``model_final.pth``.
        detector: network or its state dict, whose keys are prefixed with ``detector.``.
        iteration: index of the last training iteration, starting from 0 as in Detectron2.
        cfg_text: config in YAML format.
        class_names: names of the classes, if available.
    """
    weights = detector.state_dict() if isinstance(detector, nn.Module) else detector
    state = {f"detector.{key}": value.detach().cpu() for key, value in weights.items()}
    content = {"model": state, "iteration": iteration, CONFIG: cfg_text, "format": 1}
    write_atomically(path, content | ({CLASS_NAMES: list(class_names)} if class_names else {}))


def write_atomically(path: str | Path, content: Any) -> None:
    """Writes a file with ``torch.save`` atomically; see `atomic_file`."""
    with atomic_file(path) as file:
        torch.save(content, file)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file in the folder of ``path``, and renames it to ``path`` on exit.

    Raises:
        CheckpointError: if the file cannot be written, for example if the disk is full. An existing file is unchanged.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        cause: BaseException | None = error
        while cause and not isinstance(cause, OSError):  # torch may raise RuntimeError while handling the OSError
            cause = cause.__cause__ or cause.__context__
        if cause and isinstance(error, Exception):
            raise CheckpointError(f"{path} could not be written ({cause}): existing files are unchanged") from error
        raise


def read_checkpoint(path: Path, *, mmap: bool = False) -> Any:
    """Reads a file written by ``torch.save``, or a pickle.

    Args:
        path: input file.
        mmap: whether to map tensors into memory, which checks that the file is complete without reading them.

    Raises:
        CheckpointError: if the file is corrupt or contains anything other than tensors, arrays and plain values.
    """
    try:
        if path.suffix != ".pkl":
            return _torch_load(path, mmap)
        content = read_pickle(path)
        # Caffe2 detectors store weights under "blobs".
        return content.get("blobs", content) if isinstance(content, dict) else content
    except Exception as error:  # unpickling a corrupt file raises many types, such as KeyError and struct.error
        raise CheckpointError(
            f"{path}: corrupt, or not a checkpoint that can be read without running code ({_reason(path, error)})"
        ) from error


_SAFE_GLOBALS = threading.Lock()  # they belong to the process


def _torch_load(path: Path, mmap: bool) -> Any:
    """Loads a file with substitutes for NumPy and mmengine types, and restores torch's safe globals."""
    with _SAFE_GLOBALS:
        before = torch.serialization.get_safe_globals()
        substitutes = safe_globals()
        names = {name for _, name in substitutes}
        others = [item for item in before if _full_name(item) not in names]
        torch.serialization.clear_safe_globals()
        try:
            # The official repositories store their arguments in a Namespace, which contains no code.
            torch.serialization.add_safe_globals([*others, argparse.Namespace, *substitutes])
            return with_tensors(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _full_name(item: Any) -> str:
    return item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: corrupt, or not a safetensors file ({error})") from error


def _find_weights(path: Path, content: Any) -> dict[str, Tensor]:
    node = content if isinstance(content, Mapping) else {}
    node = next((node[key] for key in ("model", "state_dict") if isinstance(node.get(key), Mapping)), node)
    if tensors := {str(key): value for key, value in node.items() if isinstance(value, Tensor)}:
        return tensors
    raise CheckpointError(f"{path}: no weights found at the top level, under 'model' or under 'state_dict'")


def _class_names(path: Path, content: Any) -> tuple[str, ...] | None:
    """Returns the class names stored by this project or mmdetection, or in a Hugging Face ``config.json``."""

    def get(node: Any, key: str) -> Any:
        return node.get(key) if isinstance(node, Mapping) else None

    meta = get(get(content, "meta"), "dataset_meta")
    for names in (get(content, CLASS_NAMES), get(meta, "classes"), get(meta, "CLASSES")):
        if isinstance(names, list | tuple):
            return tuple(map(str, names))
    try:
        labels = json.loads(path.with_name("config.json").read_text())["id2label"]
        return tuple(str(labels[str(index)]) for index in range(len(labels)))
    except (OSError, ValueError, KeyError, TypeError):  # no such file, or not one of Hugging Face
        return None


def _reason(path: Path, error: Exception) -> str:
    """Returns the cause of an error in one line, without torch's advice to set ``weights_only=False``."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = [line.strip() for line in text.splitlines()]
    causes = [line for line in lines if line and not re.search(r"weights_only|Weights only|documentation", line)]
    reason = re.split(r" was not an allowed global|\. (?=[A-Z])", causes[0])[0] if causes else ""
    if isinstance(error, UnsafePickleError) or "GLOBAL" in reason:
        return reason
    with open(path, "rb") as file:
        start = file.read(40)
    if start and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return f"text that starts with {start.decode().splitlines()[0]!r}"
    if not isinstance(error, pickle.UnpicklingError | RuntimeError | OSError) and reason:
        return f"{type(error).__name__}: {reason}"
    return reason or ("truncated" if start else "empty")
