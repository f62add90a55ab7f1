"""`Detector`: a model with its preprocessing and postprocessing, for images from any source."""

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypedDict, overload

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms
from typing_extensions import Unpack

from ..config.inference import ConfigSource, ModelMetadata
from ..data.images import Pixels, resize_shortest_edge
from ..errors import ArgumentError
from ..evaluation import TestTimeAugmentationConfig
from ..evaluation.tta import detect_with_tta
from ..explain import input_gradients, record_attention
from ..modeling import Detections as Found
from ..modeling import Detector as Model
from ..modeling import PanopticSegmentation, Predictions, panoptic_postprocess, postprocess
from ..modeling.postprocess import instance_masks
from .detections import Detections
from .explanation import Explanation, check_points, check_rows, explain
from .images import KINDS, ImageError, Picture, Source, is_single, name_of
from .model import Runner, choose_device, choose_dtype
from .options import DEFAULT_THRESHOLD, Classes, Options, make_options
from .tiles import Tile, merge_tiles, select

BATCH_SIZE = 8  # default
CPU_BATCH_PIXELS = 512 * 512


class CallOptions(TypedDict, total=False):
    """Keyword arguments of `Detector.stream`."""

    score_threshold: float | Mapping[str, float]
    top_k: int | None
    classes: Classes | None
    nms_threshold: float | None
    tile: tuple[int, int] | None
    tta: bool | TestTimeAugmentationConfig
    color: str
    batch_size: int | None


@dataclass(frozen=True)
class _Prepared:
    """An image, and its tiles resized for the model: (3, h, w) uint8 RGB each."""

    picture: Picture
    size: tuple[int, int]
    tiles: list[Tile]
    inputs: list[Tensor]


@dataclass(frozen=True)
class _Found:
    """Detections in one tile, and its panoptic segmentation."""

    detections: Found
    segmentation: PanopticSegmentation | None = None


class Detector:
    """Detects objects in images; `Detector.load` opens a trained model.

    Detections in an image do not depend on the other images of a call. Instances are thread-safe and can be pickled.

    Args:
        runner: computes predictions; a module is copied.
        metadata: classes, preprocessing and postprocessing.
        device: device of the model; ``"auto"``: CUDA's current device, or the CPU if there is none.
        dtype: type of the computation, ``"float32"``, ``"bfloat16"`` or ``"float16"`` (or torch's dtypes). 16-bit types
            use automatic mixed precision, so that boxes and scores are computed in float32.
        compile: whether to compile the model with ``torch.compile`` on first use.

    Attributes:
        metadata: classes, preprocessing and postprocessing.
        device: device of the model.
    """

    def __init__(
        self,
        runner: Runner,
        metadata: ModelMetadata,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        compile: bool = False,
    ) -> None:
        if isinstance(runner, nn.Module):
            runner = copy.deepcopy(runner)
        self._set_up(runner, metadata, device, dtype, compile)

    def _set_up(
        self,
        runner: Runner,
        metadata: ModelMetadata,
        device: str | torch.device,
        dtype: str | torch.dtype,
        compile: bool,
    ) -> None:
        """Initializes the detector with a runner that it may change."""
        if not isinstance(metadata, ModelMetadata):
            raise ArgumentError("metadata", f"must be a ModelMetadata, got {type(metadata).__name__}")
        if not callable(runner):
            raise ArgumentError("runner", f"must be a module or a function, got {type(runner).__name__}")
        self.metadata = metadata
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype)
        self.compile = compile
        if isinstance(runner, nn.Module):
            runner = runner.to(self.device).eval().requires_grad_(False)
        elif compile or self.dtype != torch.float32:
            name = "compile" if compile else "dtype"
            raise ArgumentError(
                name, f"must be {not compile if compile else 'float32'} for an exported model, which has its precision"
            )
        self.model = runner
        self._run = torch.compile(runner, dynamic=True) if compile else runner

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        config: ConfigSource | None = None,
        class_names: Sequence[str] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        compile: bool = False,
    ) -> "Detector":
        """Opens a model. Checkpoints are read without running code; open exported models only from trusted sources.

        Args:
            source: a checkpoint of this project; the output folder of a training run, from which the best or last model
                is loaded; an exported model; the name of published weights, such as
                ``"deformable_detr_r50_two_stage"``; or a checkpoint of another project, which requires ``config``.
            config: config of a checkpoint that does not contain one: a YAML file, the name of a recipe in ``configs/``,
                or a ``CfgNode``.
            class_names: distinct class names that replace those in the file.
            device, dtype, compile: see `Detector`.

        Raises:
            UserError: if the source cannot be opened, or its config is unknown.
            ArgumentError: for an invalid argument.
        """
        from .loading import open_model

        runner, metadata = open_model(source, config, class_names, device)
        place = getattr(runner, "device", device)  # an exported model may support one device only
        detector = cls.__new__(cls)  # the constructor would copy the model
        detector._set_up(runner, metadata, place, dtype, compile)
        return detector

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, indexed by class id."""
        return self.metadata.class_names

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:3]) + (", …" if len(self.class_names) > 3 else "")
        graph = getattr(self.model, "graph", None)  # only exported models have one
        dtype = str(self.dtype).removeprefix("torch.") if graph is None else f"{graph.format}, {graph.precision}"
        return f"Detector({len(self.class_names)} classes: {names}; {dtype} on {self.device})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._run = torch.compile(self.model, dynamic=True) if self.compile else self.model

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a path is also a sequence
        self, images: Source, **options: Unpack[CallOptions]
    ) -> Detections: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a sequence is also an iterable
        self, images: Sequence[Source], **options: Unpack[CallOptions]
    ) -> list[Detections]: ...

    @overload
    def __call__(self, images: Iterable[Source], **options: Unpack[CallOptions]) -> Iterator[Detections]: ...

    def __call__(self, images: Any, **options: Unpack[CallOptions]) -> Any:
        """Returns the detections of one image, a list for a list of images, or an iterator for other iterables.

        See [`stream`][] for the arguments.
        """
        if unknown := [name for name in options if name not in CallOptions.__annotations__]:
            known = ", ".join(CallOptions.__annotations__)
            raise TypeError(f"unknown option {unknown[0]!r} of a Detector: use {known}")
        if is_single(images):
            return next(self.stream([images], **options))
        found = self.stream(images, **options)
        return list(found) if isinstance(images, Sequence) else found

    def stream(
        self,
        images: Iterable[Source],
        *,
        score_threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD,
        top_k: int | None = None,
        classes: Classes | None = None,
        nms_threshold: float | None = None,
        tile: tuple[int, int] | None = None,
        tta: bool | TestTimeAugmentationConfig = False,
        color: str = "rgb",
        batch_size: int | None = None,
        on_error: Callable[[ImageError], object] | None = None,
    ) -> Iterator[Detections]:
        """Returns an iterator over the detections in images, in order; images are read shortly before they are used.

        Args:
            images: paths, open files, PIL images; NumPy arrays (H, W, 3) uint8, or (H, W) for gray images; tensors
                (3, H, W) in RGB, uint8 in 0–255 or float in [0, 1]. Kinds can be mixed. Orientation (EXIF), gray
                images and 16-bit images are handled as in training.
            score_threshold: minimum score, 0.3 by default, or a mapping from class names to minimum scores, which
                default to 0.3 for other classes.
            top_k: maximum number of detections per image; None: the value in the model's config, usually 100, per tile.
            classes: names or ids of the classes to detect; None: all.
            nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped; None: no NMS.
            tile: ``(size, overlap)`` in pixels: detect in square tiles of large images, and merge detections of one
                class with IoU above ``nms_threshold``, or above 0.5. The overlap should exceed the largest object.
            tta: detect in resized and flipped copies of each image and merge the results; True: the model's
                ``TEST.AUG``.
            color: channel order of NumPy arrays and tensors, ``"rgb"`` or ``"bgr"`` (OpenCV).
            batch_size: maximum number of images of the same size in a batch; None: 8, or fewer for large images on
                CPUs. Up to four batches are read ahead; with 1, one image.
            on_error: called with the error for each image that cannot be read, which is then skipped; None: the error
                is raised.

        Raises:
            ImageError: if an image cannot be read.
            ArgumentError: for an invalid argument or image.
        """
        # On CPUs, batches speed up small images only: 1.9 times at 128 x 128 pixels, but slower above 512 x 512.
        max_pixels = CPU_BATCH_PIXELS if batch_size is None and self.device.type == "cpu" else None
        options = make_options(
            self.metadata,
            score_threshold,
            top_k,
            classes,
            nms_threshold,
            tile,
            tta,
            color,
            BATCH_SIZE if batch_size is None else batch_size,
            max_pixels,
        )
        if is_single(images) or isinstance(images, bytes | Mapping | Set) or not isinstance(images, Iterable):
            hint = "; wrap the content of a file in io.BytesIO" if isinstance(images, bytes) else ""
            raise ArgumentError("images", f"must be an iterable of {KINDS}, got {type(images).__name__}{hint}")
        if on_error is not None and not callable(on_error):
            raise ArgumentError("on_error", f"must be a function or None, got {on_error!r}")
        return self._stream(images, options, on_error)

    def _stream(
        self, images: Iterable[Source], options: Options, on_error: Callable[[ImageError], object] | None
    ) -> Iterator[Detections]:
        """Yields detections. The images of the next window are read while the model runs."""
        items = enumerate(images)
        # Read two batches at a time, so that images of the same size can be batched even if sizes alternate. Tiles,
        # resized copies and masks require much memory.
        is_large = options.tile is not None or options.tta is not None or self.metadata.has_masks
        window = 1 if options.batch_size == 1 or is_large else 2 * options.batch_size
        with ThreadPoolExecutor(min(window, 4)) as pool:
            failure: Exception | None = None

            def submit() -> list[Future[_Prepared]]:
                return [self._submit(pool, index, item, options) for index, item in islice(items, window)]

            tasks = submit()
            while tasks:
                prepared = []
                for task in tasks:
                    try:
                        prepared.append(task.result())
                    except Exception as error:
                        if not isinstance(error, ImageError) or on_error is None:
                            failure = error
                            break
                        on_error(error)
                try:
                    tasks = [] if failure else submit()
                except Exception as error:  # raised by the caller's iterable
                    tasks, failure = [], error
                yield from self._detect(prepared, options)
            if failure is not None:
                raise failure

    def _submit(self, pool: ThreadPoolExecutor, index: int, source: Source, options: Options) -> "Future[_Prepared]":
        """Starts the preparation of an image; all sources except paths are decoded in the caller's thread."""

        def load() -> _Prepared:
            picture = Picture(source, name_of(source, index), self.metadata.reader, options.color)
            return self._prepare(picture, options)

        if isinstance(source, str | os.PathLike):
            return pool.submit(load)
        done: Future[_Prepared] = Future()
        try:
            done.set_result(load())
        except Exception as error:
            done.set_exception(error)
        return done

    def _prepare(self, picture: Picture, options: Options) -> _Prepared:
        picture, pixels = picture.decoded()
        size = pixels.shape[0], pixels.shape[1]
        tiles = options.tiles(size)
        inputs = [
            self._resize(pixels[y : y + h, x : x + w], is_original=options.tta is not None) for y, x, h, w in tiles
        ]
        return _Prepared(picture, size, tiles, inputs)

    def _resize(self, pixels: Pixels, *, is_original: bool) -> Tensor:
        """Resizes (H, W, 3) to (3, h, w) uint8 as in evaluation, or to the fixed size of a model."""
        height, width = pixels.shape[:2]
        image = Image.fromarray(pixels)
        if self.metadata.input_size is not None:
            scale = min(self.metadata.input_size[0] / height, self.metadata.input_size[1] / width)
            size = max(1, round(height * scale)), max(1, round(width * scale))
        elif is_original:
            size = height, width
        else:
            size = resize_shortest_edge(height, width, self.metadata.min_size, self.metadata.max_size)
        return transforms.pil_to_tensor(image if size == (height, width) else transforms.resize(image, list(size)))

    def _detect(self, prepared: Sequence[_Prepared], options: Options) -> Iterator[Detections]:
        """Runs the model on batches of tiles of the same size, and yields the detections in each image."""
        groups: dict[torch.Size, list[tuple[int, int]]] = defaultdict(list)
        for index, item in enumerate(prepared):
            for position, tensor in enumerate(item.inputs):
                groups[tensor.shape].append((index, position))
        found: dict[tuple[int, int], _Found] = {}
        for shape, keys in groups.items():
            limit = options.batch_size
            if options.max_pixels is not None:
                limit = max(1, min(limit, options.max_pixels // (shape[1] * shape[2])))
            for start in range(0, len(keys), limit):
                batch = keys[start : start + limit]
                tensors = torch.stack([prepared[index].inputs[position] for index, position in batch])
                sizes = [prepared[index].tiles[position][2:] for index, position in batch]
                found.update(zip(batch, self._detect_batch(tensors, sizes, options), strict=True))
        for index, item in enumerate(prepared):
            yield self._finish(item, [found[index, position] for position in range(len(item.tiles))], options)

    @torch.no_grad()  # not inference_mode, whose tensors cannot be changed in place by users
    def _detect_batch(self, images: Tensor, sizes: list[tuple[int, int]], options: Options) -> list[_Found]:
        """Detects objects in images (N, 3, h, w) uint8; returns results in pixels of the original ``sizes``."""
        images = images.to(self.device)
        limits = options.candidates, options.classes, options.min_score
        if options.tta is not None:
            found = detect_with_tta(self._predict, images, options.tta, *limits)
            return [_Found(options.select(item)) for item in found]
        count, fixed = len(images), self.metadata.batch_size or len(images)
        results: list[_Found] = []
        for start in range(0, count, fixed):
            part, places = images[start : start + fixed], sizes[start : start + fixed]
            missing = fixed - len(part)
            part = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            predictions = self._predict(part)
            places = places + places[-1:] * missing
            # Masks use most of the memory, so they are computed only for the detections that are kept.
            detections = postprocess(replace(predictions, masks=None), places, *limits)
            segmentations: Sequence[PanopticSegmentation | None] = [None] * fixed
            if self.metadata.evaluation.is_panoptic:
                config = self.metadata.evaluation
                segmentations = panoptic_postprocess(
                    predictions, places, config.thing_classes, config.panoptic_score_threshold, config.panoptic_min_area
                )
            for index in range(fixed - missing):
                kept = options.select(detections[index])
                if predictions.masks is not None:
                    assert kept.queries is not None
                    kept = replace(kept, masks=instance_masks(predictions.masks, index, kept.queries, places[index]))
                results.append(_Found(kept, segmentations[index]))
        return results

    def explain(
        self,
        image: Source,
        *,
        detections: Sequence[int] | None = None,
        points: Sequence[tuple[float, float]] = (),
        gradients: bool = False,
        score_threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD,
        top_k: int | None = None,
        classes: Classes | None = None,
        nms_threshold: float | None = None,
        color: str = "rgb",
    ) -> Explanation:
        """Returns the attention of detections and points in an image, recomputed from the inputs of attention layers.

        The hooks that record them exist during this call only. Points of DETR cost (layers, P, heads, tokens) floats.

        Args:
            image: see [`stream`][], as for the following arguments; one image.
            detections: indices of the detections to explain among those that a call of the detector with the same
                options returns; None: all; () for none.
            points: points (x, y) in pixels of the image for the encoder's attention.
            gradients: whether to compute gradients of the detections with respect to the pixels: five backward passes
                of each detection.
            score_threshold, top_k, classes, nms_threshold, color: see [`stream`][].

        Raises:
            ImageError: if the image cannot be read.
            ArgumentError: for an invalid argument, or an exported model.
        """
        model = self.model
        if not isinstance(model, Model):
            raise ArgumentError("explain", "needs a checkpoint: exported models do not have attention layers")
        limits = score_threshold, top_k, classes, nms_threshold
        options = make_options(self.metadata, *limits, None, False, color, 1)
        if not is_single(image):
            raise ArgumentError("image", f"must be one image, got {type(image).__name__}")
        item = self._prepare(Picture(image, name_of(image, 0), self.metadata.reader, options.color), options)
        marks = check_points(points, item.size)
        batch, mask = self._normalize(item.inputs[0][None].to(self.device))
        batch.requires_grad_(gradients)
        with torch.set_grad_enabled(gradients), self._precision(), record_attention(model) as recording:
            predictions = model(batch, mask)
        candidates = options.candidates, options.classes, options.min_score
        found = options.select(postprocess(replace(predictions, masks=None), [item.size], *candidates)[0])
        rows = torch.arange(len(found.scores))
        if detections is not None:
            rows = check_rows(detections, len(rows), options.min_score)
            found = select(found, rows.to(self.device))
        assert found.queries is not None
        maps = input_gradients(predictions, batch, found.queries, found.labels) if gradients else None
        kept = self._finish(item, [_Found(found)], options)
        with self._precision():
            return explain(recording, predictions, kept, rows, found.queries, marks, maps)

    def _predict(self, images: Tensor) -> Predictions:
        """Returns predictions for images (N, 3, h, w) uint8 RGB."""
        batch, mask = self._normalize(images)
        with self._precision():
            predictions: Predictions = self._run(batch, mask)
        return predictions

    def _precision(self) -> AbstractContextManager[object]:
        """Returns the context of the computation, which enables mixed precision for 16-bit types."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def _normalize(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the model's input for images (N, 3, h, w) uint8 RGB, and its padding mask."""
        metadata = self.metadata
        if metadata.reader.format == "BGR":
            images = images.flip(1)
        mean, std = (
            torch.tensor(values, device=self.device).view(-1, 1, 1)
            for values in (metadata.pixel_mean, metadata.pixel_std)
        )
        batch = ((images.float() - mean) / std).contiguous()
        mask = torch.zeros(len(batch), *batch.shape[-2:], dtype=torch.bool, device=self.device)
        if metadata.input_size is not None:
            down, right = metadata.input_size[0] - batch.shape[-2], metadata.input_size[1] - batch.shape[-1]
            batch = nn.functional.pad(batch, (0, right, 0, down))
            mask = nn.functional.pad(mask, (0, right, 0, down), value=True)
        return batch, mask

    def _finish(self, item: _Prepared, found: list[_Found], options: Options) -> Detections:
        """Merges the detections in the tiles of an image and moves them to the CPU."""
        detections, segmentation = found[0].detections, found[0].segmentation
        if len(found) > 1:
            assert options.tile is not None
            parts = [part.detections for part in found]
            limits = options.tile[1], options.nms_threshold, options.merged_top_k or options.top_k * len(found)
            detections = merge_tiles(item.size, item.tiles, parts, *limits)
        if segmentation is not None:
            segmentation = replace(segmentation, ids=segmentation.ids.cpu())
        return Detections(
            detections.boxes.cpu(),
            detections.scores.cpu(),
            detections.labels.cpu(),
            self.class_names,
            item.size,
            None if detections.masks is None else detections.masks.cpu(),
            segmentation,
            item.picture,
        )
