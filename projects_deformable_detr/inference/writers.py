"""Outputs of ``deformable-detr predict``: pictures, videos, COCO results, CSV and YOLO text."""

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_convert

from ..checkpoint import atomic_file
from ..errors import UserError
from . import drawing
from .detections import Detections


@dataclass(frozen=True)
class Result:
    """Detections in an image or a frame of a video.

    Attributes:
        detections: detections, all of which have a track if ``tracks`` is set.
        name: unique name of the image or video.
        file: path of the image or video.
        image_id: unique id of the image or frame.
        frame: number of the frame in its video, starting at 1; None for images.
        fps: frames per second of the video; None for images.
        tracks: track id of each detection; None without tracking.
    """

    detections: Detections
    name: str
    file: str
    image_id: int
    frame: int | None = None
    fps: float | None = None
    tracks: list[int] | None = None


class Writer(Protocol):
    """Writes results to files, which are complete after `close`."""

    def write(self, result: Result) -> None: ...

    def close(self) -> None: ...


class PictureWriter:
    """Writes ``NAME.jpg`` for each image and ``NAME.mp4`` for each video."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._video: tuple[str, tuple[int, int], cv2.VideoWriter] | None = None

    def write(self, result: Result) -> None:
        texts = None
        if result.tracks is not None:
            names = zip(result.detections.names, result.tracks, strict=True)
            texts = [f"{name} #{track}" for name, track in names]
        # The tracks are those of boxes, not of panoptic segments.
        picture = result.detections.draw(texts=texts, masks=texts is None or result.detections.segmentation is None)
        if result.fps is None:
            drawing.save(self.folder / f"{result.name}.jpg", np.asarray(picture))
        else:
            self._add_frame(result.name, result.fps, picture)

    def _add_frame(self, name: str, fps: float, picture: Image.Image) -> None:
        if self._video is None or self._video[0] != name:
            self.close()
            path = self.folder / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, picture.size)
            if not video.isOpened():
                raise UserError(f"{path} cannot be written: this OpenCV has no encoder for MP4")
            self._video = name, picture.size, video
        _, size, video = self._video
        video.write(np.ascontiguousarray(np.asarray(picture.resize(size))[:, :, ::-1]))

    def close(self) -> None:
        if self._video is not None:
            self._video[2].release()
            self._video = None


class CocoWriter:
    """Writes ``detections.json``, a COCO results file with the additional fields name, file, frame and track_id.

    Args:
        folder: folder of the file.
        category_ids: category id of each class; None: the class ids.
    """

    def __init__(self, folder: Path, category_ids: list[int] | None) -> None:
        self.path = folder / "detections.json"
        self.category_ids = category_ids
        self.results: list[dict[str, Any]] = []

    def write(self, result: Result) -> None:
        origin: dict[str, Any] = {"name": result.name, "file": result.file}
        if result.frame is not None:
            origin["frame"] = result.frame
        for index, item in enumerate(result.detections.to_coco(result.image_id, self.category_ids)):
            track = {} if result.tracks is None else {"track_id": result.tracks[index]}
            self.results.append(item | origin | track)

    def close(self) -> None:
        with atomic_file(self.path) as file:
            file.write(json.dumps(self.results).encode())


class CsvWriter:
    """Writes ``detections.csv`` with one row per detection and box corners in pixels."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options: Any = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # names may be any bytes
        self._file = open(folder / "detections.csv", "w", **options)  # noqa: SIM115, see close
        self._rows = csv.writer(self._file)
        self._rows.writerow(
            ["name", "image_id", "class", "label", "score", "x1", "y1", "x2", "y2", "track", "frame", "file"]
        )

    def write(self, result: Result) -> None:
        for index, item in enumerate(result.detections):
            track = None if result.tracks is None else result.tracks[index]
            box = [f"{value:.2f}" for value in item.box]
            row = [result.name, result.image_id, item.name, item.label, f"{item.score:.4f}", *box, track, result.frame]
            self._rows.writerow([*row, result.file])

    def close(self) -> None:
        self._file.close()


class YoloWriter:
    """Writes ``labels/NAME.txt``, with ``_FRAME`` appended for frames: class, box (cx, cy, w, h) in [0, 1], score."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "labels"

    def write(self, result: Result) -> None:
        name = result.name if result.frame is None else f"{result.name}_{result.frame}"
        path = self.folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = result.detections
        height, width = found.size
        boxes = box_convert(found.boxes, "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
        rows = zip(found.labels.tolist(), boxes.tolist(), found.scores.tolist(), strict=True)
        lines = [" ".join([str(label), *(f"{value:.6f}" for value in (*box, score))]) for label, box, score in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def close(self) -> None:
        pass


class Writers(ExitStack):
    """Context manager that writes results in several formats, and completes all files even after an error.

    Args:
        folder: output folder, which is created with its first file.
        formats: ``"picture"``, ``"coco"``, ``"csv"`` and ``"yolo"``.
        category_ids: see `CocoWriter`.
    """

    def __init__(self, folder: Path, formats: list[str], category_ids: list[int] | None = None) -> None:
        super().__init__()
        self.folder = folder
        available: dict[str, Any] = {
            "picture": PictureWriter,
            "coco": lambda folder: CocoWriter(folder, category_ids),
            "csv": CsvWriter,
            "yolo": YoloWriter,
        }
        self.writers: list[Writer] = []
        for name in dict.fromkeys(formats):
            self.writers.append(available[name](folder))
            self.callback(self._close, self.writers[-1])

    def _close(self, writer: Writer) -> None:
        with _naming_folder(self.folder):
            writer.close()

    def write(self, result: Result) -> None:
        """Writes the detections of an image or frame in all formats."""
        with _naming_folder(self.folder):
            for writer in self.writers:
                writer.write(result)


@contextmanager
def _naming_folder(folder: Path) -> Iterator[None]:
    """Adds the output folder to errors that name no file, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
