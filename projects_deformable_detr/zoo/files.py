"""Downloads published files to the caches of huggingface_hub and torch.hub, and verifies their hashes."""

import hashlib
import logging
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from ..engine import is_main_process
from ..errors import UserError

_logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without receiving data


class DownloadError(UserError):
    """Raised if a file cannot be downloaded, or if its hash differs from that of the published file."""


@dataclass(frozen=True)
class HubFile:
    """File on the Hugging Face Hub, downloaded by ``huggingface_hub`` to its cache.

    ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and proxies apply.

    Attributes:
        repository: organization and name.
        revision: commit.
        sha256: SHA-256 of the file.
        name: path of the file in the repository.
    """

    repository: str
    revision: str
    sha256: str
    name: str = "model.safetensors"

    @property
    def page(self) -> str:
        """Web page of the repository."""
        return f"https://huggingface.co/{self.repository}"

    def download(self) -> Path:
        """Returns the path of the file in the cache, and downloads it if it is not there.

        Raises:
            DownloadError: if the file cannot be downloaded or is corrupt.
        """
        from huggingface_hub import hf_hub_download, try_to_load_from_cache  # slow to import (0.3 s)
        from huggingface_hub.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # each retry is logged otherwise
        is_new = not isinstance(try_to_load_from_cache(self.repository, self.name, revision=self.revision), str)
        if is_new:
            _log_start(f"{self.repository}/{self.name}", "the Hugging Face hub")
        try:
            path = Path(hf_hub_download(self.repository, self.name, revision=self.revision))
        except Exception as error:  # raised by requests, httpx or huggingface_hub
            raise DownloadError(
                f"{self.name} of {self.repository}, revision {self.revision}, could not be downloaded "
                f"({_reason(error)}): check the network, HF_HUB_OFFLINE, HF_ENDPOINT, the proxy and the disk and try "
                f"again; or download it elsewhere from {self.page} and give its path"
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        _check_hash(path, self.sha256, remove=[path.resolve(), path] if is_new else [])
        return path


@dataclass(frozen=True)
class UrlFile:
    """File on a web server, downloaded to the cache of ``torch.hub``.

    ``TORCH_HOME`` and proxies apply. The next call resumes an interrupted download.

    Attributes:
        url: address.
        sha256: SHA-256 of the file, or its first digits.
    """

    url: str
    sha256: str

    @property
    def page(self) -> str:
        """Address of the file."""
        return self.url

    def download(self) -> Path:
        """Returns the path of the file in the cache, and downloads it if it is not there; raises `DownloadError`."""
        import torch
        from filelock import FileLock  # a dependency of torch

        path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(self.url).path).name)
        partial = path.with_name(f"{path.name}.partial")
        try:
            if not path.is_file():
                _log_start(path.name, self.url)
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{path}.lock"):  # several processes of a job may download the same file
                    if not path.is_file():
                        _fetch(self.url, partial)
                        _check_hash(partial, self.sha256, remove=[partial])
                        partial.replace(path)
        except (OSError, HTTPException) as error:
            rest = f"; {partial} is kept, and the next download continues it" if partial.is_file() else ""
            raise DownloadError(
                f"{self.url} could not be downloaded ({_reason(error)}): check the network, the proxy and the disk and "
                f"try again{rest}; or download it elsewhere and save it as {path}"
            ) from error
        _check_hash(path, self.sha256, remove=[])
        return path


def _fetch(url: str, partial: Path) -> None:
    """Downloads a file to ``partial``, and resumes the download if ``partial`` exists."""
    from tqdm import tqdm

    start = partial.stat().st_size if partial.is_file() else 0
    headers = {"User-Agent": "projects_deformable_detr"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # the range starts at or after the end of the file
            raise
        partial.unlink()
        return _fetch(url, partial)
    with response:
        start = start if response.status == 206 else 0  # a server that does not support ranges sends the whole file
        length = response.headers["Content-Length"]  # absent in chunked transfer
        total = None if length is None else start + int(length)
        bar = tqdm(total=total, initial=start, desc=partial.stem, unit="B", unit_scale=True, disable=None)
        with bar, open(partial, "ab" if start else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and (size := partial.stat().st_size) != total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")


def _log_start(name: str, source: str) -> None:
    """Logs on rank 0 which file is downloaded, because connecting may take half a minute without a network."""
    if is_main_process():
        _logger.info("Downloading %s from %s", name, source)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check_hash(path: Path, expected: str, remove: list[Path]) -> None:
    """Raises `DownloadError` and removes files if the hash of ``path`` does not start with ``expected``."""
    found = sha256_of(path)
    if found.startswith(expected):
        return
    for file in remove:
        file.unlink(missing_ok=True)
    action = "it was removed, try again" if remove else "delete it to download it again"
    raise DownloadError(
        f"{path}: corrupt, or not the published file: its SHA-256 is {found[: len(expected)]}, not {expected}; {action}"
    )


def _reason(error: BaseException) -> str:
    """Returns the first line of the root cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
