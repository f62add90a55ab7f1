"""Inputs of ``deformable-detr predict``: image files, folders, patterns, COCO files, videos and cameras."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import cv2
import numpy as np

from ..data.catalog import DatasetSpec
from ..data.entries import check_categories, convert_images
from ..data.files import read_json
from ..data.images import list_images
from ..data.problems import Problems
from ..errors import UserError

STDIN = "<stdin>"
_VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}


@dataclass(frozen=True)
class ImageItem:
    """An image file.

    Attributes:
        path: the file.
        name: unique name of its results: path relative to the given folder, or file name, without the suffix.
        image_id: id in the COCO file, or a number starting at 1.
    """

    path: str
    name: str
    image_id: int


@dataclass(frozen=True)
class Video:
    """A video file or camera.

    Attributes:
        source: file, or index of the camera.
        name: name of its results.
        fps: frames per second.
        count: number of frames; 0: unknown.
    """

    source: str
    name: str
    fps: float
    count: int

    def frames(self) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        """Yields frames (H, W, 3) uint8 in BGR."""
        capture = _open(self.source)
        try:
            while True:
                is_read, frame = capture.read()
                if not is_read:
                    return
                yield np.asarray(frame, dtype=np.uint8)
        finally:
            capture.release()


def expand_patterns(sources: Sequence[str]) -> list[str]:
    """Replaces patterns with ``*``, ``?`` or ``[`` with the files that match.

    Raises:
        UserError: for a pattern without matches, and an empty string.
    """
    found = []
    for source in sources:
        is_pattern = glob.has_magic(source) and not os.path.exists(source)
        files = [file for file in sorted(glob.glob(source, recursive=True)) if os.path.isfile(file)]
        if not source or (is_pattern and not files):
            raise UserError(f"{source}: no files match" if source else "a source is empty: give the path of an image")
        found += files if is_pattern else [source]
    return found


def find_videos(sources: Sequence[str]) -> tuple[list[str], list[Video]]:
    """Returns the sources that are not videos or cameras, and the videos and cameras.

    Raises:
        UserError: if a video or camera cannot be opened.
    """
    others, videos = [], []
    for source in sources:
        is_camera = source.isdigit() and not Path(source).exists()
        if not is_camera and Path(source).suffix.lower() not in _VIDEOS:
            others.append(source)
            continue
        capture = _open(source)
        fps, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        name = f"camera_{source}" if is_camera else Path(source).stem
        videos.append(Video(source, name, fps if 0 < fps < 1000 else 30.0, max(0, count)))
    names = _unique([video.name for video in videos])
    return others, [replace(video, name=name) for video, name in zip(videos, names, strict=True)]


def _open(source: str) -> cv2.VideoCapture:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # each backend that fails logs warnings
    if source.isdigit() and not Path(source).exists():
        capture, problem = cv2.VideoCapture(int(source)), f"camera {source} cannot be opened: check its index"
    elif not Path(source).is_file():
        raise UserError(f"{source}: no such file")
    else:
        capture, problem = cv2.VideoCapture(source), f"{source} cannot be read as a video"
    if not capture.isOpened():
        raise UserError(problem)
    return capture


def find_images(sources: Sequence[str], image_root: str | None = None) -> tuple[list[ImageItem], dict[str, int] | None]:
    """Returns the images of files, folders, patterns and COCO files, and the category ids of the COCO files.

    Args:
        sources: image files, ``-`` for standard input, folders, which are searched recursively, and COCO files with the
            suffix ``.json``, which need no annotations.
        image_root: folder of the images of COCO files.

    Returns:
        Images without duplicates, and category ids by name, or None without a COCO file.

    Raises:
        UserError: for a source that does not exist or has no images, or an unusable COCO file.
    """
    paths: dict[str, tuple[str, int | None]] = {}
    categories: dict[str, int] | None = None
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = {str(file): str(file.relative_to(path).with_suffix("")) for file in list_images(path)}
        elif path.suffix == ".json" and path.is_file():
            if image_root is None:
                raise UserError(f"{source}: the folder of its images is unknown: add --images DIR")
            if not os.path.isdir(image_root):
                raise UserError(f"--images {image_root}: no such folder")
            items, ids = _read_coco(path, image_root)
            if other := [
                name for name, identifier in (categories or {}).items() if ids.get(name, identifier) != identifier
            ]:
                raise UserError(f"{source}: category {other[0]} has another id than in the other COCO files")
            categories = (categories or {}) | ids
            paths |= {file: (name, image_id) for file, name, image_id in items}
            continue
        elif source == "-":
            found = {STDIN: "stdin"}
        elif path.exists():
            found = {source: path.stem}
        else:
            raise UserError(f"{source}: no such file or folder")
        if not found:
            raise UserError(f"{source}: no image files")
        paths |= {file: (name, None) for file, name in found.items() if file not in paths}
    names = _unique([name for name, _ in paths.values()])
    first = 1 + max((image_id for _, image_id in paths.values() if image_id is not None), default=0)
    numbers = range(first, first + len(paths))
    images = [
        ImageItem(file, unique, number if image_id is None else image_id)
        for (file, (_, image_id)), unique, number in zip(paths.items(), names, numbers, strict=True)
    ]
    return images, categories


def _read_coco(path: Path, image_root: str) -> tuple[list[tuple[str, str, int]], dict[str, int]]:
    """Returns (file, name, id) of each image of a COCO file, and the category ids by name."""
    spec = DatasetSpec(path.stem, path, image_root)
    content, problems = read_json(spec), Problems(str(spec))
    images = convert_images(content["images"], problems)
    categories = check_categories(content["categories"], problems)
    problems.raise_if_any()
    items = []
    for image in images:
        if image.file_name is None:
            raise UserError(f"{path}: image {image.id} has no file_name")
        # Absolute paths and ".." would lead out of the output folder.
        parts = [part for part in PureWindowsPath(image.file_name).parts if part.strip("/\\.") and ":" not in part]
        name = str(Path(*parts).with_suffix("")) if parts else "image"
        items.append((str(Path(image_root, image.file_name)), name, image.id))
    return items, {name: identifier for identifier, name in categories.items()}


def _unique(names: Sequence[str]) -> list[str]:
    """Returns names with ``_2``, ``_3``, … appended to repeated ones."""
    used = set(names)
    seen: set[str] = set()
    result = []
    for name in names:
        unique, number = name, 2
        while unique in seen or (unique != name and unique in used):
            unique, number = f"{name}_{number}", number + 1
        seen.add(unique)
        result.append(unique)
    return result
