"""Checks that image files are readable and have the size in their record, before training."""

import functools
import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import check_choice
from .images import ImageReader, describe, note_once, open_image, read_sizes
from .load import log_once
from .panoptic import PanopticRecords
from .problems import DatasetError, IntensityError, Problems
from .records import Array, Records

_logger = logging.getLogger(__name__)
CHECKS = ("auto", "all", "pixels", "none")
_NUM_SAMPLED = 2000  # number of images per data set checked with "auto"
_MIN_CACHED = 100  # minimum number of new results for which the cache is written
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # last bytes of complete files


class _Header(msgspec.Struct):
    """Result for one file; ``size`` and ``stored_size`` are (height, width) with and without EXIF orientation."""

    num_bytes: int
    mtime: int
    decoded: bool
    size: tuple[int, int] = (0, 0)
    stored_size: tuple[int, int] = (0, 0)
    notes: list[str] = []
    fault: str = ""
    range_fault: str = ""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files of a data set.

    Attributes:
        source: name of the data set, for messages.
        root: folder that identifies the cache of results.
        images: paths of the images.
        labels: paths of the panoptic PNGs or label images in the same order; empty if there are none.
        sizes: (images, 2) height and width in the record of each image; 0 if the record has none.
    """

    source: str
    root: str
    images: Sequence[str]
    labels: Sequence[str]
    sizes: Array

    @property
    def paths(self) -> list[str]:
        """Paths of all files, images first."""
        return [*self.images, *self.labels]


def check_images(
    records: Records,
    reader: ImageReader,
    check_images: str = "auto",
    unreadable_images: str = "error",
    *,
    warn: Callable[[str], Any] = log_once,
) -> Records:
    """Checks the images and panoptic PNGs of a data set; see `check_files` for arguments and errors.

    Returns:
        The records, without unreadable images if they are skipped.
    """
    checked, messages = _check(records, reader, check_images, unreadable_images)
    for message in messages:
        warn(message)
    return checked


@functools.lru_cache(maxsize=8)  # engines may load a data set several times
def _check(
    records: Records, reader: ImageReader, check_images: str, unreadable_images: str
) -> tuple[Records, tuple[str, ...]]:
    """Returns the checked records and the warnings about them."""
    pngs = records.png_paths if isinstance(records, PanopticRecords) else []
    files = ImageFiles(str(records.spec), str(records.spec.image_root), records.file_names, pngs, records.sizes)
    messages: list[str] = []
    kept = check_files(files, reader, check_images, unreadable_images, warn=messages.append)
    return records if len(kept) == len(records) else records.select(kept), tuple(messages)


def check_files(
    files: ImageFiles,
    reader: ImageReader,
    check_images: str = "auto",
    unreadable_images: str = "error",
    *,
    warn: Callable[[str], Any] = log_once,
) -> Array:
    """Reads the headers of image files in parallel and reports all problems at once.

    JPEG and PNG files without an end marker and files in other formats are also decoded. Gray values of 32 bits and
    floats are compared with the range of their type. Results for readable files are cached in
    ``$XDG_CACHE_HOME/deformable-detr`` until the size or modification time of the file changes.

    Args:
        files: files of a data set.
        reader: reader of the images.
        check_images: ``"auto"``: 2,000 evenly spaced images, and all of them if one has a problem; ``"all"``;
            ``"pixels"``: decode all images; ``"none"``.
        unreadable_images: ``"error"``, or ``"skip"``: check all images, and drop unreadable ones with a warning.
        warn: called with a message for each kind of accepted problem.

    Returns:
        Indices of the images, without unreadable ones if they are skipped.

    Raises:
        DatasetError: if files have problems; the message lists them.
        ArgumentError: for an unknown value of ``check_images`` or ``unreadable_images``.
    """
    check_choice("check_images", check_images, CHECKS)
    check_choice("unreadable_images", unreadable_images, ("error", "skip"))
    total = len(files.images)
    everything = np.arange(total)
    if check_images == "none" or not total:
        return everything
    start, decode, chosen = time.perf_counter(), check_images == "pixels", everything
    if check_images == "auto" and unreadable_images == "error" and total > _NUM_SAMPLED:
        chosen = np.linspace(0, total - 1, _NUM_SAMPLED).astype(int)
    headers = _read_headers(files, reader, chosen, decode)
    problems = _find_problems(files, reader, headers)
    if len(chosen) < total and (problems or any(header.fault for header in headers.values())):
        headers = _read_headers(files, reader, everything, decode)
        problems = _find_problems(files, reader, headers)
    _logger.info("%s: %d image files checked in %.1f s", files.source, len(headers), time.perf_counter() - start)
    for message in _describe(files, headers):
        warn(message)
    unreadable = {index % total: header.fault for index, header in headers.items() if header.fault}
    if unreadable and unreadable_images == "skip" and len(unreadable) < total:
        shown = "; ".join([*unreadable.values()][:5]) + "; …" * (len(unreadable) > 5)
        counts = f"{len(unreadable)} of {total} images are skipped because they cannot be read"
        warn(f"{files.source}: {counts}: {shown}")
        everything = np.setdiff1d(everything, [*unreadable])
    elif unreadable:
        remedy = "Replace the files or remove their records; the command train also accepts `unreadable_images=skip`."
        problems.add("image files that cannot be read", unreadable.values(), remedy, len(unreadable))
    problems.raise_if_any()
    return everything


def _find_problems(files: ImageFiles, reader: ImageReader, headers: dict[int, _Header]) -> Problems:
    """Collects files whose size differs from their record or whose values need an intensity window."""
    problems, paths = Problems(files.source), files.paths
    for index, header in headers.items():
        expected = tuple(files.sizes[index % len(files.images)].tolist())
        size = header.size if reader.exif_orientation else header.stored_size
        if header.range_fault:
            remedy = "Set `intensity_window` to the values of black and white."
            problems.add("images whose values exceed the range of their type", header.range_fault, remedy)
        if header.fault or size == expected or 0 in expected:
            continue
        what = f"{paths[index]} is {size[1]} x {size[0]} (width x height), {expected[1]} x {expected[0]} in its record"
        if size != expected[::-1]:
            problems.add("images whose size differs from their record", what, "Correct the records or the files.")
        elif header.size == header.stored_size:
            problems.add("records with swapped width and height", what, "Swap width and height in these records.")
        else:
            problems.add(
                f"images whose records {'ignore' if reader.exif_orientation else 'apply'} the EXIF orientation",
                what,
                f"Set `exif_orientation` to {not reader.exif_orientation} if the boxes match the sizes in the records. "
                "Otherwise, swap width and height in these records.",
            )
    return problems


def _describe(files: ImageFiles, headers: dict[int, _Header]) -> Iterator[str]:
    """Yields a message for each property from `describe` that has not been reported for the folder of a file."""
    found, paths = defaultdict(list), files.paths
    for index, header in headers.items():
        for note in header.notes:
            found[note].append(paths[index])
    for note, names in found.items():
        if note_once(note, names):
            yield f"{files.source}: {len(names)} of {len(headers)} images, such as {names[0]}, have {note}"


def _read_headers(files: ImageFiles, reader: ImageReader, indices: Array, decode: bool) -> dict[int, _Header]:
    """Returns the header of each file by its index in ``paths``, from the cache if the file is unchanged."""
    paths = files.paths
    indices = np.concatenate([indices + start for start in range(0, len(paths), len(files.images))])
    root = os.path.abspath(files.root)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "deformable-detr"
    cache_file = folder / f"images-{hashlib.sha256(root.encode()).hexdigest()[:16]}.json"
    try:
        cached = msgspec.json.decode(cache_file.read_bytes(), type=dict[str, _Header])
    except (OSError, ValueError):
        cached = {}

    def read(index: int) -> tuple[int, _Header]:
        return index, _read_header(paths[index], reader, decode, cached.get(os.path.abspath(paths[index])))

    with ThreadPoolExecutor() as pool:
        found = dict(pool.map(read, indices.tolist()))
    new = {os.path.abspath(paths[index]): header for index, header in found.items()}
    if sum(cached.get(path) is not header for path, header in new.items()) >= _MIN_CACHED:
        _write(cache_file, msgspec.json.encode(cached | new))
    return found


def _read_header(path: str, reader: ImageReader, decode: bool, cached: _Header | None) -> _Header:
    try:
        status = os.stat(path)
    except OSError as error:
        return _Header(-1, -1, True, fault=f"{path} ({error.strerror})")
    header = _Header(status.st_size, status.st_mtime_ns, decode)
    if cached and (cached.num_bytes, cached.mtime) == (header.num_bytes, header.mtime) and cached.decoded >= decode:
        return cached
    try:
        with open_image(path) as image:
            header.size, header.stored_size = read_sizes(image)
            header.notes = describe(image)
            end = _ENDS.get("JPEG" if image.format == "MPO" else image.format or "")
            if decode or end is None or not _ends_with(path, end):
                image.load()
                header.decoded = True
            if image.mode in ("I", "F"):
                header.mtime = -1  # not cached, because the result depends on the reader
                try:
                    reader.read(path)
                except IntensityError as error:
                    header.range_fault = str(error).rpartition(": ")[0]
    except DatasetError as error:
        header.fault = str(error).rpartition(": ")[0]  # without the remedy
        header.mtime = -1  # not cached, because the cause may be temporary, such as a lack of memory
    return header


def _ends_with(path: str, end: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(len(end), os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read() == end


def _write(path: Path, content: bytes) -> None:
    """Replaces a file atomically. Errors are only logged, because the cache is optional."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        _logger.info("The results of the image check are not cached: %s", error)
