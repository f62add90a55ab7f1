"""Checkpoint files: read without running code, written whole or not at all."""

import argparse
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or that does not fit the model."""


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.safetensors`` file, on the CPU.

    The weights may stand alone, under ``model`` (Detectron2, the official repositories) or under ``state_dict``
    (Lightning).

    Raises:
        CheckpointError: if there is no such file, it holds anything but tensors and plain values, or no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file (MODEL.WEIGHTS)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        # The official repositories keep their command line beside the weights: a Namespace holds values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the unpickler: KeyError, struct.error, …
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint that can be read without running code from it ({_reason(error)})"
        ) from error
    return _find_weights(path, content)


def _reason(error: Exception) -> str:
    """The part of torch's long advice that names what is wrong: the refused type, or else its first line."""
    refused = re.search(r"Unsupported (?:global|class)[^\n.]*(?:GLOBAL|class)? ?[\w.]+", str(error))
    return refused.group() if refused else (str(error).strip() or "it ends too early").splitlines()[0]


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
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise CheckpointError(f"{path}: holds no weights (no tensors at the top, under 'model' or 'state_dict')")


def save_detector(path: str | Path, detector: nn.Module, *, iteration: int, cfg_text: str) -> None:
    """Writes the detector so that both engines, and ``load_weights``, read it.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Args:
        path: the file, usually ``model_final.pth``.
        detector: the network; its keys get the prefix ``detector.``.
        iteration: the last one that was trained, counted from 0, as Detectron2 stores it.
        cfg_text: the config as YAML.
    """
    state = {f"detector.{key}": value.detach().cpu() for key, value in detector.state_dict().items()}
    write_atomically(path, {"model": state, "iteration": iteration, "config": cfg_text, "format": 1})


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
