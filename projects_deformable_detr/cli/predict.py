"""Detects objects in images, videos and camera streams.

A source is an image file, a folder, a pattern such as "photos/*.jpg", a COCO file (with --images), a video file, or the
index of a camera. Images that cannot be read are reported and skipped.

Examples:
  deformable-detr predict --weights output/quickstart street.jpg photos/
  deformable-detr predict --weights model_final.pth --format coco --format csv val.json --images val2017/
  deformable-detr predict --weights model_final.pth --track --classes car,bus traffic.mp4

Exit status: 0; 1 if images could not be read; 2 for invalid arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from ..inference import Detections, Detector
    from ..inference.sources import ImageItem, Video
    from ..inference.writers import Writers

HELP = "detect objects in images and videos"
FORMATS = ("picture", "coco", "csv", "yolo")
_LOW_SCORE = 0.1  # minimum score of detections that continue a track


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="image, folder, pattern, COCO file, video, camera")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--weights", required=True, metavar="W", help="checkpoint, output folder, exported model or published weights"
    )
    model.add_argument(
        "--config-file", metavar="FILE", help="config of a checkpoint that has none: file or recipe name"
    )
    model.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda if there is a GPU)")
    model.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="precision")
    model.add_argument("--compile", action="store_true", help="compile the model: slower start, faster inference")
    model.add_argument(
        "--batch-size", type=int, metavar="N", help="images per batch (default: 8, on CPUs fewer of large images)"
    )
    found = parser.add_argument_group("detections")
    found.add_argument("--threshold", type=float, default=0.3, metavar="T", help="minimum score (default: %(default)s)")
    found.add_argument("--classes", metavar="A,B", help="names of the classes to detect (default: all)")
    found.add_argument("--top-k", type=int, metavar="K", help="maximum number of detections of an image")
    found.add_argument(
        "--nms", type=float, metavar="IOU", help="drop the lower-scoring of two boxes of a class above this IoU"
    )
    found.add_argument(
        "--tile", type=int, nargs=2, metavar=("SIZE", "OVERLAP"), help="detect in tiles of large images, in pixels"
    )
    found.add_argument("--tta", action="store_true", help="test-time augmentation: resized and flipped copies")
    found.add_argument("--track", action="store_true", help="track objects in videos (needs the package trackers)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="DIR", help="output folder (default: %(default)s)"
    )
    output.add_argument(
        "--format", action="append", choices=FORMATS, metavar="F", help=f"{', '.join(FORMATS)} (repeatable; default: "
        "picture). picture: NAME.jpg or NAME.mp4; coco: detections.json; csv: detections.csv; yolo: labels/NAME.txt"
    )  # fmt: skip
    output.add_argument("--overwrite", action="store_true", help="write into an output folder that is not empty")
    output.add_argument("--images", metavar="DIR", help="folder of the images of COCO files")
    output.add_argument("--max-frames", type=int, metavar="N", help="frames of each video or camera (default: all)")


def run(args: argparse.Namespace) -> int:
    """Detects objects and writes the results; returns 1 if images could not be read."""
    if args.output.is_dir() and any(args.output.iterdir()) and not args.overwrite:
        raise UserError(f"{args.output} is not empty: choose another folder with --output, or add --overwrite")
    from ..inference import Detector
    from ..inference.sources import find_images, find_videos
    from ..inference.writers import Writers

    others, videos = find_videos(args.sources)
    images, categories = find_images(others, args.images) if others else ([], None)
    if args.track and not videos:
        raise UserError("--track needs a video or a camera")
    detector = Detector.load(
        args.weights, config=args.config_file, device=args.device, dtype=args.dtype, compile=args.compile
    )
    options: dict[str, Any] = {
        "score_threshold": args.threshold,
        "classes": None if args.classes is None else [name.strip() for name in args.classes.split(",")],
        "top_k": args.top_k,
        "nms_threshold": args.nms,
        "tile": None if args.tile is None else tuple(args.tile),
        "tta": args.tta,
        "batch_size": args.batch_size,
    }
    detector.stream([], **options)  # checks the options before any file is written
    category_ids = None if categories is None else _category_ids(detector, options["classes"], categories)
    start = time.monotonic()
    with Writers(args.output, args.format or ["picture"], category_ids) as writers:
        counts, broken = _detect_images(detector, images, writers, options)
        for video in videos:
            counts += _detect_frames(detector, video, writers, options, args)
    seconds = time.monotonic() - start
    number = f"{len(counts)} image{'s' * (len(counts) != 1)}"
    rate = f"{seconds:.1f} s ({len(counts) / seconds:.2f} images/s)"
    print(f"{number}, {sum(counts)} detections in {rate}: {args.output}")
    if broken:
        print(f"{broken} of {len(images)} images could not be read and were left out, see above", file=sys.stderr)
    return 1 if broken else 0


def _category_ids(detector: Detector, classes: list[str] | None, categories: dict[str, int]) -> list[int]:
    """Returns the category id of each class in a COCO file; -1 for classes that are not detected."""
    lacking = [name for name in classes or detector.class_names if name not in categories]
    if lacking:
        raise UserError(
            f"the COCO file has no category {', '.join(lacking[:5])}{', …' * (len(lacking) > 5)} of the model: select "
            "the common classes with --classes"
        )
    return [categories.get(name, -1) for name in detector.class_names]


def _detect_images(
    detector: Detector, images: list[ImageItem], writers: Writers, options: dict[str, Any]
) -> tuple[list[int], int]:
    """Writes the detections in images; returns their number in each image, and the number of unreadable images."""
    from ..inference.writers import Result

    items = {item.path: item for item in images}
    broken: list[str] = []
    counts = []
    with _progress(len(images), "image") as step:

        def report(error: Any) -> None:
            broken.append(error.source)
            step(1)
            print(f"\n{error}", file=sys.stderr)

        for found in detector.stream([item.path for item in images], on_error=report, **options):
            item = items[found.source]
            writers.write(Result(found, item.name, item.image_id))
            counts.append(len(found))
            step(1)
    return counts, len(broken)


def _detect_frames(
    detector: Detector, video: Video, writers: Writers, options: dict[str, Any], args: argparse.Namespace
) -> list[int]:
    """Writes the detections in the frames of a video; returns their number in each frame."""
    from ..inference.writers import Result

    counts = []
    if video.source.isdigit() and options["batch_size"] is None:
        options = {**options, "batch_size": 1}  # read cameras only one frame ahead, to limit the delay
    stop = args.max_frames or sys.maxsize
    frames = (frame for _, frame in zip(range(stop), video.frames(), strict=False))
    found: Iterator[tuple[Detections, list[int] | None]]
    if args.track:
        follow = _tracker(video.fps, args.threshold)
        low = {**options, "score_threshold": min(_LOW_SCORE, args.threshold)}
        found = map(follow, detector.stream(frames, color="bgr", **low))
    else:
        found = ((item, None) for item in detector.stream(frames, color="bgr", **options))
    with _progress(min(stop, video.count) if video.count else None, "frame") as step:
        for number, (detections, tracks) in enumerate(found, 1):
            writers.write(Result(detections, video.name, number, video.fps, tracks))
            counts.append(len(detections))
            step(1)
    return counts


def _tracker(fps: float, threshold: float) -> Callable[[Detections], tuple[Detections, list[int]]]:
    """Returns a function that selects the tracked detections of the next frame, with their track ids (ByteTrack)."""
    try:
        from trackers import ByteTrackTracker
    except ModuleNotFoundError as error:
        raise UserError("--track needs the package trackers: pip install trackers") from error
    import numpy as np

    tracker = ByteTrackTracker(frame_rate=fps, track_activation_threshold=threshold, high_conf_det_threshold=threshold)

    def follow(found: Detections) -> tuple[Detections, list[int]]:
        detections = found.to_supervision()
        detections.data["index"] = np.arange(len(found))
        tracked: Any = tracker.update(detections)
        indices: Any = tracked.data.get("index", ())
        pairs = [(int(k), int(track)) for k, track in zip(indices, tracked.tracker_id, strict=True) if track >= 0]
        return found[[index for index, _ in pairs]], [track for _, track in pairs]

    return follow


@contextlib.contextmanager
def _progress(total: int | None, unit: str) -> Iterator[Callable[[int], object]]:
    """Shows a progress bar with images per second on a terminal; yields a function that advances it."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, disable=None, smoothing=0.1) as bar:
        yield bar.update
