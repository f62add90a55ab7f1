"""Checkpoint files: read without running code, written whole or not at all."""

import argparse
import json
import os
import pickle
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .pickles import RefusedPickleError, as_tensors, read_pickle, stand_ins, with_arrays

CLASS_NAMES = "class_names"  # the key beside the weights in this project's files
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or that does not fit the model."""


@dataclass(frozen=True)
class Weights:
    """What a checkpoint file holds.

    Attributes:
        state: tensors by their names, on the CPU.
        class_names: of the class head's logits in their order, where the file or its config tells them.
    """

    state: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict of `read_weights`."""
    return read_weights(path).state


def read_weights(path: str | Path) -> Weights:
    """The weights in a ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.safetensors`` or ``.pkl`` file, on the CPU.

    They may stand alone, under ``model`` (Detectron2, the official repositories) or under ``state_dict`` (Lightning).
    A folder of Hugging Face's with one file of weights is read too; the class names are in the ``config.json`` beside.

    Raises:
        CheckpointError: if there is no such file, it holds anything but tensors and plain values, or no weights.
    """
    path = file_of(Path(path))
    if path.suffix == ".safetensors":
        return Weights(_read_safetensors(path), _hugging_face_classes(path))
    content = read_content(path)
    names = _class_names(content)
    told = tuple(map(str, names)) if isinstance(names, list | tuple) else _hugging_face_classes(path)
    return Weights(_find_weights(path, content), told)


def read_content(path: Path) -> Any:
    """All that a file of `read_weights` holds, but for safetensors, without running code from it.

    Raises:
        CheckpointError: if it is damaged, or holds anything but tensors and plain values.
    """
    try:
        return _read_torch_or_pickle(path)
    except Exception as error:  # a damaged file can fail anywhere in the unpickler: KeyError, struct.error, …
        reason = _reason(path, error)
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint that can be read without running code from it ({reason})"
        ) from error


def _class_names(content: Any) -> Any:
    """Those in this project's files, and in mmdetection's."""
    place: Any = content if isinstance(content, Mapping) else {}
    if CLASS_NAMES in place:
        return place[CLASS_NAMES]
    for key in ("meta", "dataset_meta"):
        place = place.get(key)
        if not isinstance(place, Mapping):
            return None
    return place.get("classes", place.get("CLASSES"))


def file_of(path: Path) -> Path:
    """The file that `read_weights` reads: ``path``, or the one with weights in a folder of Hugging Face's.

    Raises:
        CheckpointError: if there is none.
    """
    if path.is_dir():
        found = [path / name for name in _IN_FOLDERS if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path}: a folder with neither of {' and '.join(_IN_FOLDERS)}: name a file in it")
        return found[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file (MODEL.WEIGHTS)")
    return path


def _read_torch_or_pickle(path: Path) -> Any:
    if path.suffix == ".pkl":
        content = read_pickle(path)
        # Caffe2's detectors keep theirs under "blobs".
        return content.get("blobs", content) if isinstance(content, dict) else content
    # The official repositories keep their command line beside the weights: a Namespace holds values, no code.
    try:
        return _load(path, {*torch.serialization.get_safe_globals(), argparse.Namespace})
    except pickle.UnpicklingError:
        # NumPy's arrays, and mmdetection's log: what stands for them here takes their values and does nothing. Alone:
        # where a program has allowed NumPy's own types too, it would be left to chance which of the two torch takes.
        return with_arrays(_load(path, (argparse.Namespace, *stand_ins())))


def _load(path: Path, allowed: Iterable[Any]) -> Any:
    with _only_safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _only_safe_globals(allowed: Iterable[Any]) -> Iterator[None]:
    """What ``torch.load`` may make, in place of what the program has allowed, which comes back."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allowed))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _hugging_face_classes(path: Path) -> tuple[str, ...] | None:
    """``id2label`` of the ``config.json`` in the same folder, where there is one."""
    try:
        labels = json.loads(path.with_name("config.json").read_text())["id2label"]
        return tuple(str(labels[str(index)]) for index in range(len(labels)))
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not Hugging Face's
        return None


def _reason(path: Path, error: Exception) -> str:
    """One line: what is wrong, without torch's advice to run the file's code."""
    said = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = [line.strip() for line in said.splitlines()]
    told = [line for line in lines if line and not re.search(r"weights_only|Weights only|documentation", line)]
    reason = re.split(r" was not an allowed global|\. (?=[A-Z])", told[0])[0] if told else ""
    if isinstance(error, RefusedPickleError) or "GLOBAL" in reason:
        return reason
    with open(path, "rb") as file:
        begin = file.read(40)
    if begin and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in begin):
        return f"it is text, which begins {begin.decode().splitlines()[0]!r}"
    if not isinstance(error, pickle.UnpicklingError | RuntimeError | OSError) and reason:
        return f"{type(error).__name__}: {reason}"
    return reason or ("it ends too early" if begin else "it is empty")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError  # an optional package, needed for such files only
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path}: reading it needs the safetensors package: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error})") from error


def _find_weights(path: Path, content: Any) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if isinstance(content, Mapping):
        try:
            tensors = {key: value for key, value in as_tensors(content).items() if isinstance(value, Tensor)}
        except RefusedPickleError as error:
            raise CheckpointError(f"{path}: {error}") from error
        if tensors:
            return tensors
    raise CheckpointError(f"{path}: holds no weights (no tensors at the top, under 'model' or 'state_dict')")


def save_detector(
    path: str | Path, detector: nn.Module, *, iteration: int, cfg_text: str, class_names: Sequence[str] | None = None
) -> None:
    """Writes the detector so that both engines, and ``load_weights``, read it.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Args:
        path: the file, usually ``model_final.pth``.
        detector: the network; its keys get the prefix ``detector.``.
        iteration: the last one that was trained, counted from 0, as Detectron2 stores it.
        cfg_text: the config as YAML.
        class_names: of the classes in their order, where they are known.
    """
    state = {f"detector.{key}": value.detach().cpu() for key, value in detector.state_dict().items()}
    content = {"model": state, "iteration": iteration, "config": cfg_text, "format": 1}
    write_atomically(path, content | ({CLASS_NAMES: list(class_names)} if class_names else {}))


def write_atomically(path: str | Path, content: Any) -> None:
    """``torch.save`` to a temporary file in the same folder, then a rename over ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
