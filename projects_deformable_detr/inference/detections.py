"""Results of `Detector`: boxes, masks and panoptic segments of an image, and their conversion to other formats."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.masks import encode
from ..errors import ArgumentError
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
                raise IndexError(f"index {index} of {len(self)} detections")
            label = int(self.labels[index])
            mask = None if self.masks is None else self.masks[index]
            left, top, right, bottom = self.boxes[index].tolist()
            box = (left, top, right, bottom)
            return Detection(box, float(self.scores[index]), label, self.class_names[label], mask)
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
            threshold: minimum score of drawn detections, or a mapping from class names to minimum scores, which default
                to 0.3 for other classes.
            ground_truth: boxes (T, 4) as (x1, y1, x2, y2) in pixels and labels (T,), drawn on a copy to the right.
            masks: whether to draw masks and segments.
            texts: text of each detection; None: names of classes and scores.
            min_side: images whose shorter side is below this value are enlarged by an integer factor to keep texts
                legible; 1 keeps the size.

        Raises:
            ArgumentError: if the detections have no image.
            ImageError: if the image file no longer exists.
        """
        if self.picture is None:
            raise ArgumentError("picture", "must be set to draw detections, got None")
        image = self.picture.pixels()
        if masks and self.segmentation is not None:
            drawn = drawing.draw_segments(image, self.segmentation, self.class_names, min_side=min_side)
        else:
            is_shown = (
                self.scores >= torch.tensor(class_thresholds(threshold, self.class_names, "threshold"))[self.labels]
            )
            shown = self[is_shown]
            drawn = drawing.draw(
                image,
                shown.boxes,
                shown.labels,
                shown.scores,
                self.class_names,
                masks=shown.masks if masks else None,
                texts=None if texts is None else [texts[index] for index in is_shown.nonzero()[:, 0].tolist()],
                min_side=min_side,
            )
        if ground_truth is not None:
            truth = drawing.draw(image, *ground_truth, class_names=self.class_names, min_side=min_side)
            drawn = drawing.grid([drawn, truth], columns=2)
        return Image.fromarray(drawn)

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

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | Mapping[str, int] | None = None) -> list[Any]:
        """Returns the detections as a list of results in COCO format, with boxes as (x, y, width, height).

        Args:
            image_id: id of the image.
            category_ids: category id of each class, as a sequence or by class name; None: the class ids.

        Raises:
            ArgumentError: if a class has no category id.
        """
        if category_ids is None:
            ids: dict[str, int] = {name: index for index, name in enumerate(self.class_names)}
            by_label = list(range(len(self.class_names)))
        elif isinstance(category_ids, Mapping):
            ids = dict(category_ids)
            if missing := [name for name in self.class_names if name not in ids]:
                raise ArgumentError("category_ids", f"must have an id for every class, lacks {', '.join(missing)}")
            by_label = [ids[name] for name in self.class_names]
        else:
            by_label = list(category_ids)
            if len(by_label) != len(self.class_names):
                raise ArgumentError(
                    "category_ids", f"must have {len(self.class_names)} ids, one for each class, got {len(by_label)}"
                )
        results = []
        for index, (left, top, right, bottom) in enumerate(self.boxes.tolist()):
            result = {
                "image_id": image_id,
                "category_id": by_label[int(self.labels[index])],
                "bbox": [left, top, right - left, bottom - top],
                "score": float(self.scores[index]),
            }
            if self.masks is not None:
                result["segmentation"] = encode(self.masks[index].numpy())
            results.append(result)
        return results

    def to_supervision(self) -> Any:
        """Returns ``supervision.Detections`` (package supervision) with the names in ``data["class_name"]``."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=None if self.masks is None else self.masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_instances(self) -> Any:
        """Returns Detectron2's ``Instances`` with ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_masks``."""
        from ..detectron2_plugin.meta_arch import to_instances
        from ..modeling import Detections as Found

        return to_instances(Found(self.boxes, self.scores, self.labels, self.masks), self.size)
