"""``torchvision://NAME``: ImageNet weights that torchvision publishes."""

from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torchvision

from .files import CheckpointError

TORCHVISION = "torchvision://"


class CannotDownloadError(CheckpointError):
    """ImageNet weights that the network does not give."""


def download(source: str) -> Path:
    """The file of ``torchvision://NAME``, in the cache of ``torch.hub``.

    Raises:
        CheckpointError: if torchvision has no such weights, they are damaged, or cannot be downloaded.
    """
    name = source.removeprefix(TORCHVISION)
    try:
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: torchvision has no such ImageNet weights; try torchvision://resnet50"
        ) from error
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    try:
        if not file.is_file():
            weights.get_state_dict(progress=False, check_hash=True)
        return file
    except RuntimeError as error:  # the file's hash
        raise CheckpointError(f"{source}: the download is damaged ({error}): start again") from error
    except (URLError, OSError) as error:
        raise CannotDownloadError(f"{source} could not be downloaded ({error}).") from error
