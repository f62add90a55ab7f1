"""Detects objects in images, videos and camera streams.

A source is an image file, a folder, a pattern such as "photos/*.jpg", a COCO file (with --images), a video file, the
index of a camera, or - for an image from standard input. Images that cannot be read are reported and skipped.

Examples:
  deformable-detr predict --weights output/quickstart street.jpg photos/
  deformable-detr predict --weights model_final.pth --format coco --format csv val.json --images val2017/
  deformable-detr predict --weights model_final.pth --track --classes car,bus traffic.mp4

Exit status: 0; 1 if images or videos could not be read completely, or pictures not written; 2 for invalid arguments.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine import is_installed
from ..errors import Range, UserError, missing_package
from .arguments import add_model_arguments, check_not_input, check_output_folder, load_model, number

if TYPE_CHECKING:
    from ..inference import Detections, Detector
    from ..inference.sources import ImageItem, Video
    from ..inference.writers import Writers

HELP = "detect objects in images and videos"
FORMATS = ("picture", "coco", "csv", "yolo")
_LOW_SCORE = 0.1  # minimum score of detections that continue a track
_COMPLETE = 0.9  # minimum fraction of the frames of a readable video


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="image, folder, pattern, COCO file, video, camera")
    add_model_arguments(parser.add_argument_group("model"))
    found = parser.add_argument_group("detections")
    found.add_argument(
        "--threshold",
        type=number(Range(0, 1), float),
        default=0.3,
        metavar="T",
        help="minimum score (default: %(default)s)",
    )
    found.add_argument("--classes", metavar="A,B", help="names of the classes to detect (default: all)")
    found.add_argument("--top-k", type=number(Range(1)), metavar="K", help="maximum number of detections of an image")
    found.add_argument(
        "--nms",
        type=number(Range(0, 1), float),
        metavar="IOU",
        help="drop the lower-scoring of two boxes of a class above this IoU",
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
    output.add_argument(
        "--max-frames", type=number(Range(1)), metavar="N", help="maximum number of frames (default: all)"
    )


def run(args: argparse.Namespace) -> int:
    """Detects objects and writes the results; returns 1 if images or videos could not be read or written."""
    check_output_folder(args.output, overwrite=args.overwrite)
    from ..config.reading import naming_keys
    from ..inference.sources import expand_patterns, find_images, find_videos
    from ..inference.writers import Writers

    others, videos = find_videos(expand_patterns(args.sources))
    images, categories = find_images(others, args.images) if others else ([], None)
    if args.track and not videos:
        raise UserError("--track needs a video or a camera")
    if args.track and not is_installed("trackers"):
        raise UserError(f"--track {missing_package('trackers')}")
    detector = load_model(args)
    options: dict[str, Any] = {
        "score_threshold": args.threshold,
        "classes": None if args.classes is None else [name.strip() for name in args.classes.split(",")],
        "top_k": args.top_k,
        "nms_threshold": args.nms,
        "tile": None if args.tile is None else tuple(args.tile),
        "tta": args.tta,
        "batch_size": args.batch_size,
    }
    with naming_keys({"classes": "--classes", "tile": "--tile", "tta": "--tta"}):
        detector.stream([], **options)  # checks the options before any file is written
    formats = args.format or ["picture"]
    category_ids = None
    if categories is not None and "coco" in formats:
        category_ids = _category_ids(detector, options["classes"], categories)
    if "picture" in formats:
        sources = [item.path for item in images] + [video.source for video in videos]
        for name, suffix in [(item.name, ".jpg") for item in images] + [(video.name, ".mp4") for video in videos]:
            check_not_input(args.output / f"{name}{suffix}", sources)
    if "yolo" in formats:
        _check_label_files(images, videos)
    start = time.monotonic()
    with Writers(args.output, formats, category_ids) as writers:
        counts, broken = _detect_images(detector, images, writers, options)
        image_id = max((item.image_id for item in images), default=0)
        for video in videos:
            found, is_complete = _detect_frames(detector, video, writers, options, args, image_id)
            counts += found
            broken += not is_complete
            image_id += len(found)
    seconds = time.monotonic() - start
    number = f"{len(counts)} image{'s' * (len(counts) != 1)}"
    rate = f"{seconds:.1f} s ({len(counts) / seconds:.2f} images/s)"
    print(f"{number}, {sum(counts)} detections in {rate}: {args.output}")
    if counts and not any(counts) and not args.track:
        print(f"No detection has a score of at least {args.threshold:g}: lower --threshold")
    if broken:
        kind, result = ("images and videos", "completely") if videos else ("images", "or written, and were skipped")
        print(f"{broken} of {len(images) + len(videos)} {kind} could not be read {result}, see above", file=sys.stderr)
    return 1 if broken else 0


def _check_label_files(images: list[ImageItem], videos: list[Video]) -> None:
    """Raises `UserError` if ``labels/NAME_FRAME.txt`` of a video could be the file of an image."""
    for video in videos:
        pattern = re.compile(re.escape(video.name) + r"_[1-9]\d*")
        for item in images:
            if pattern.fullmatch(item.name):
                raise UserError(
                    f"the labels of {item.path} and of a frame of {video.source} would be written to the same file: "
                    "run the command once for each of them"
                )


def _category_ids(detector: Detector, classes: list[str] | None, categories: dict[str, int]) -> list[int]:
    """Returns the category id of each class in a COCO file; -1 for classes that are not detected."""
    lacking = [name for name in classes or detector.class_names if name not in categories]
    if lacking:
        raise UserError(
            f"the COCO file has no category {', '.join(lacking[:5])}{', …' * (len(lacking) > 5)} of the model, which "
            "--format coco needs for its id: select the common classes with --classes, or choose other formats"
        )
    return [categories.get(name, -1) for name in detector.class_names]


def _detect_images(
    detector: Detector, images: list[ImageItem], writers: Writers, options: dict[str, Any]
) -> tuple[list[int], int]:
    """Writes the detections in images; returns their number in each image, and the number of skipped images."""
    from tqdm import tqdm

    from ..inference.images import ImageError
    from ..inference.sources import STDIN
    from ..inference.writers import Result

    items = {item.path: item for item in images}
    counts = []
    with tqdm(total=len(images), unit=" images", disable=None) as bar:

        def report(error: Any) -> None:
            bar.update()
            tqdm.write(str(error), file=sys.stderr)

        sources = (_standard_input() if path == STDIN else path for path in items)
        for found in detector.stream(sources, on_error=report, **options):
            item = items[found.source]
            try:
                writers.write(Result(found, item.name, item.path, item.image_id))
            except ImageError as error:
                report(error)
                continue
            counts.append(len(found))
            bar.update()
    return counts, len(images) - len(counts)


def _standard_input() -> io.BytesIO:
    """Returns the content of the standard input, which cannot be read twice."""
    from ..inference.sources import STDIN

    file = io.BytesIO(sys.stdin.buffer.read())
    file.name = STDIN
    return file


def _detect_frames(
    detector: Detector,
    video: Video,
    writers: Writers,
    options: dict[str, Any],
    args: argparse.Namespace,
    last_image_id: int,
) -> tuple[list[int], bool]:
    """Writes the detections in the frames of a video.

    Returns:
        The number of detections in each frame, and whether all frames could be read.
    """
    from tqdm import tqdm

    from ..inference.writers import Result

    counts = []
    if video.source.isdigit() and options["batch_size"] is None:
        options = {**options, "batch_size": 1}  # read cameras only one frame ahead, to limit the delay
    frames = islice(video.frames(), args.max_frames)
    found: Iterator[tuple[Detections, list[int] | None]]
    if args.track:
        follow = _tracker(video.fps, args.threshold)
        low = {**options, "score_threshold": min(_LOW_SCORE, args.threshold)}
        found = map(follow, detector.stream(frames, color="bgr", **low))
    else:
        found = ((item, None) for item in detector.stream(frames, color="bgr", **options))
    expected = min(args.max_frames or video.count, video.count) or None
    with tqdm(total=expected, unit=" frames", disable=None) as bar:
        for frame, (detections, tracks) in enumerate(found, 1):
            image_id = last_image_id + frame
            writers.write(Result(detections, video.name, video.source, image_id, frame, video.fps, tracks))
            counts.append(len(detections))
            bar.update()
    # The number of frames in a file's header may be an estimate.
    is_complete = len(counts) >= _COMPLETE * (expected or 1)
    if not is_complete:
        of = f" of {expected}" if expected else ""
        print(f"{video.source}: only {len(counts)}{of} frames could be decoded", file=sys.stderr)
    return counts, is_complete


def _tracker(fps: float, threshold: float) -> Callable[[Detections], tuple[Detections, list[int]]]:
    """Returns a function that selects the tracked detections of the next frame, with their track ids (ByteTrack)."""
    import numpy as np
    from trackers import ByteTrackTracker

    tracker = ByteTrackTracker(frame_rate=fps, track_activation_threshold=threshold, high_conf_det_threshold=threshold)

    def follow(found: Detections) -> tuple[Detections, list[int]]:
        detections = found.to_supervision()
        detections.data["index"] = np.arange(len(found))
        tracked: Any = tracker.update(detections)
        indices: Any = tracked.data.get("index", ())
        pairs = [(int(k), int(track)) for k, track in zip(indices, tracked.tracker_id, strict=True) if track >= 0]
        return found[[index for index, _ in pairs]], [track for _, track in pairs]

    return follow
