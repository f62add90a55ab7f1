"""Results of `Detector`: boxes, masks and panoptic segments of an image, and their conversion to other formats."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import modeling
from ..data.masks import encode
from ..engine import is_installed
from ..errors import ArgumentError, UserError, missing_package
from ..evaluation.coco import ImageDetections
from ..modeling import PanopticSegmentation
from . import drawing
from .images import Picture
from .options import class_thresholds


class Detection(NamedTuple):
    """One detection.

    Attributes:
        box: x1, y1, x2, y2 in pixels.
        score: in [0, 1].
        label: class id.
        name: name of the class.
        mask: (H, W) bool; None for models without masks.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections in one image, best score first, as CPU tensors in pixels of the original image.

    ``detections[k]`` is a `Detection`. A slice, a boolean mask (N,) or a sequence of indices selects several.

    Attributes:
        boxes: (N, 4) float32 as (x1, y1, x2, y2), clipped to the image.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64 class ids, indices into ``class_names``.
        class_names: names of all classes of the model.
        size: (H, W) of the image after its EXIF orientation is applied.
        masks: (N, H, W) bool; None for models without a mask head.
        segmentation: panoptic segmentation with ``ids`` (H, W) int32 and the list ``segments``; None for other models.
        picture: the image, which `draw` reads again.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    size: tuple[int, int]
    masks: Tensor | None = None
    segmentation: PanopticSegmentation | None = None
    picture: Picture | None = None

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    @property
    def source(self) -> str:
        """Path of the image, or its position in the input."""
        return "" if self.picture is None else self.picture.name

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, Tensor | np.ndarray) and index.ndim == 0:
            index = int(index)
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is out of range for {len(self)} detections")
            label = int(self.labels[index])
            mask = None if self.masks is None else self.masks[index]
            left, top, right, bottom = self.boxes[index].tolist()
            box = (left, top, right, bottom)
            return Detection(box, float(self.scores[index]), label, self.class_names[label], mask)
        if isinstance(index, str) or index is None:
            raise TypeError(f"detections are selected by a slice, a boolean mask or indices, got {index!r}")
        rows = index if isinstance(index, slice) else torch.as_tensor(index)
        if isinstance(rows, Tensor) and not rows.numel():
            rows = rows.to(torch.bool if len(self) == 0 else torch.int64)
        masks = None if self.masks is None else self.masks[rows]
        return replace(self, boxes=self.boxes[rows], scores=self.scores[rows], labels=self.labels[rows], masks=masks)

    def __repr__(self) -> str:
        counts = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
        segments = "" if self.segmentation is None else f", {len(self.segmentation.segments)} segments"
        return f"Detections({self.source!r}, {self.size[1]} x {self.size[0]} pixels: {found}{segments})"

    def draw(
        self,
        *,
        threshold: float | Mapping[str, float] = 0.0,
        ground_truth: tuple[Any, Any] | None = None,
        masks: bool = True,
        texts: Sequence[str] | None = None,
        min_side: int = 480,
    ) -> Image.Image:
        """Draws boxes, class names, scores and masks on the image, or the segments of a panoptic segmentation.

        Args:
            threshold: minimum score of drawn detections or segments, or a mapping from class names to minimum scores,
                which default to 0.3 for other classes.
            ground_truth: boxes (T, 4) as (x1, y1, x2, y2) in pixels and labels (T,), drawn on a copy to the right.
            masks: whether to draw masks, and segments instead of boxes.
            texts: text of each detection, or of each segment; None: names of classes, and scores of boxes.
            min_side: images whose shorter side is below this value are enlarged by an integer factor to keep texts
                legible, as far as the longer side is at most 4096; 1 keeps the size.

        Raises:
            ArgumentError: for an invalid argument, or if the detections have no image.
            ImageError: if the image file no longer exists.
        """
        if self.picture is None:
            raise ArgumentError("picture", "must be set to draw detections, got None")
        if isinstance(min_side, bool) or not isinstance(min_side, int) or min_side < 1:
            raise ArgumentError("min_side", f"must be an integer of at least 1, got {min_side!r}")
        segments = self.segmentation.segments if masks and self.segmentation is not None else None
        labels, scores = self.labels, self.scores
        if segments is not None:
            labels = torch.tensor([item["category_id"] for item in segments], dtype=torch.int64)
            scores = torch.tensor([item["score"] for item in segments])
        if texts is not None and (not isinstance(texts, Sequence) or len(texts) != len(labels)):
            kind = "detections" if segments is None else "segments"
            raise ArgumentError("texts", f"must have a text for each of the {len(labels)} {kind}, got {texts!r}")
        limits = torch.tensor(class_thresholds(threshold, self.class_names, "threshold"))
        rows = (scores >= limits[labels]).nonzero()[:, 0].tolist()
        texts = None if texts is None else [texts[row] for row in rows]
        truth = None if ground_truth is None else self._check_truth(ground_truth)
        image = self.picture.pixels()
        if segments is not None:
            assert self.segmentation is not None
            shown = replace(self.segmentation, segments=[segments[row] for row in rows])
            drawn = drawing.draw_segments(image, shown, self.class_names, texts=texts, min_side=min_side)
        else:
            boxes, shown_masks = self.boxes[rows], self.masks[rows] if masks and self.masks is not None else None
            drawn = drawing.draw(
                image, boxes, labels[rows], scores[rows], self.class_names,
                masks=shown_masks, texts=texts, min_side=min_side,
            )  # fmt: skip
        if truth is not None:
            other = drawing.draw(image, *truth, class_names=self.class_names, min_side=min_side)
            drawn = drawing.grid([drawn, other], columns=2)
        return Image.fromarray(drawn)

    def _check_truth(self, ground_truth: Any) -> tuple[Tensor, Tensor]:
        """Returns boxes (T, 4) and labels (T,); raises `ArgumentError` if they are invalid."""
        try:
            boxes, labels = (torch.as_tensor(part) for part in ground_truth)
            is_valid = boxes.reshape(-1, 4).shape[0] == len(labels) and labels.ndim == 1
        except (TypeError, ValueError, RuntimeError):
            is_valid = False
        if not is_valid:
            raise ArgumentError("ground_truth", f"must be boxes (T, 4) and labels (T,), got {ground_truth!r}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            expected = f"0 to {len(self.class_names) - 1}"
            raise ArgumentError("ground_truth", f"must have labels from {expected}, got {labels.tolist()}")
        return boxes, labels

    def to_dict(self) -> dict[str, Any]:
        """Returns the detections as JSON-serializable values, with masks in COCO's RLE format."""
        result: dict[str, Any] = {
            "source": self.source,
            "size": list(self.size),
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "labels": self.labels.tolist(),
            "names": self.names,
        }
        if self.masks is not None:
            result["masks"] = [encode(mask.numpy()) for mask in self.masks]
        if self.segmentation is not None:
            segments = self.segmentation.segments
            result["segments"] = [{**item, "name": self.class_names[item["category_id"]]} for item in segments]
        return result

    def to_coco(self, image_id: int = 0, category_ids: Iterable[int] | Mapping[str, int] | None = None) -> list[Any]:
        """Returns the detections as a list of results in COCO format, with boxes as (x, y, width, height).

        Args:
            image_id: id of the image.
            category_ids: category id of each class, as a sequence or by class name; None: the class ids.

        Raises:
            ArgumentError: if a class has no category id.
        """
        if category_ids is None:
            by_label = list(range(len(self.class_names)))
        elif isinstance(category_ids, Mapping):
            if missing := [name for name in self.class_names if name not in category_ids]:
                raise ArgumentError("category_ids", f"must have an id for every class, lacks {', '.join(missing)}")
            by_label = [category_ids[name] for name in self.class_names]
        elif not isinstance(category_ids, Iterable) or len(by_label := list(category_ids)) != len(self.class_names):
            raise ArgumentError(
                "category_ids", f"must have {len(self.class_names)} ids, one for each class, got {category_ids!r}"
            )
        found = modeling.Detections(self.boxes, self.scores, self.labels, self.masks)
        return ImageDetections.from_detections(image_id, found).to_coco(by_label)

    def to_supervision(self) -> Any:
        """Returns ``supervision.Detections`` with the names in ``data["class_name"]``.

        Raises:
            UserError: if the package supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise UserError(f"to_supervision {missing_package('supervision')}") from error

        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=None if self.masks is None else self.masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_instances(self) -> Any:
        """Returns Detectron2's ``Instances`` with ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_masks``.

        Raises:
            UserError: if Detectron2 is not installed.
        """
        if not is_installed("detectron2"):
            raise UserError(
                "to_instances requires detectron2, which is not installed: install it from its repository, or use "
                "to_dict or to_supervision"
            )
        from ..detectron2_plugin.meta_arch import to_instances
        from ..modeling import Detections as Found

        return to_instances(Found(self.boxes, self.scores, self.labels, self.masks), self.size)
