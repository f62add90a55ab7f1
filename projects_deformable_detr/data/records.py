"""Records of a data set, stored in compact arrays, and their summary."""

import copy
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from .catalog import DatasetSpec
from .files import ImageEntry
from .problems import Problems

Record = dict[str, Any]  # Detectron2's standard format
Array = np.ndarray[Any, np.dtype[Any]]
R = TypeVar("R", bound="Records")


class Classes(NamedTuple):
    """Class names and category ids of a data set, indexed by class id, and the number of things, which come first."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_things: int


@dataclass(frozen=True)
class Summary:
    """Summary of a data set that passed its checks.

    Attributes:
        name: name of the data set.
        class_names: class names, indexed by class id.
        category_ids: category ids in the file, indexed by class id.
        num_things: number of thing classes, which come first; all classes unless the data set is panoptic.
        num_images: number of images in the file.
        num_annotations: number of used annotations or segments, including crowds.
        num_crowd: number of crowds among them.
        dropped: number of annotations dropped because their box or mask has no area.
        clipped: number of boxes that were clipped to their image.
        max_objects_per_image: largest number of objects in one image, without crowds.
        is_lvis: whether the file is in LVIS format.
        warnings: one message per kind of accepted problem.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_things: int
    num_images: int
    num_annotations: int
    num_crowd: int
    dropped: int = 0
    clipped: int = 0
    max_objects_per_image: int = 0
    is_lvis: bool = False
    warnings: tuple[str, ...] = ()


class Records(Sequence[Record]):
    """Sequence of records in Detectron2's standard format, sorted by image id.

    Records are created on access from arrays, which take less memory than one dict per annotation and are cheap to
    send to another process.

    Args:
        spec: location of the data set.
        summary: summary of the data set.
        images: entries of the file.
        spans: (images, 2) range [start, stop) of each image's annotations.
        labels: (annotations,) class ids.
        is_crowd: (annotations,) bool.
        is_used: (annotations,) bool, False for dropped annotations; None: all are used.

    Attributes:
        file_names: paths of the images.
        image_ids: (images,) ids of the images in the file.
        sizes: (images, 2) height and width.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        summary: Summary,
        images: Sequence[ImageEntry],
        spans: Array,
        labels: Array,
        is_crowd: Array,
        is_used: Array | None = None,
    ) -> None:
        self.spec = spec
        self.summary = summary
        self.file_names = [os.path.join(spec.image_root, str(image.file_name)) for image in images]
        self.image_ids = np.array([image.id for image in images], np.int64)
        self.sizes = np.array([(image.height, image.width) for image in images], np.int32)
        self.spans = spans
        self.labels = labels
        self.is_crowd = is_crowd
        self.is_used = np.ones(len(labels), bool) if is_used is None else is_used

    def __len__(self) -> int:
        return len(self.file_names)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self: R, index: slice) -> R: ...
    def __getitem__(self: R, index: int | slice) -> Record | R:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        index = range(len(self))[index]
        height, width = self.sizes[index].tolist()
        record = {
            "file_name": self.file_names[index],
            "height": height,
            "width": width,
            "image_id": int(self.image_ids[index]),
        }
        return record | self._annotations(index)

    def select(self: R, indices: Array) -> R:
        """Returns the images at the given positions."""
        selected = copy.copy(self)
        selected.file_names = [self.file_names[index] for index in indices.tolist()]
        selected.image_ids, selected.sizes = self.image_ids[indices], self.sizes[indices]
        selected.spans = self.spans[indices]
        return selected

    def with_objects(self: R) -> R:
        """Returns the images with at least one object that is not a crowd."""
        counts = np.concatenate([[0], np.cumsum(self.is_used & ~self.is_crowd)])
        return self.select(np.flatnonzero(counts[self.spans[:, 1]] > counts[self.spans[:, 0]]))

    def without_annotations(self: R) -> R:
        """Returns the images without annotations."""
        selected = copy.copy(self)
        selected.spans = np.zeros_like(self.spans)
        return selected

    def object_labels(self, *, crowds: bool = False) -> list[Array]:
        """Returns the class ids of the objects in each image; with ``crowds``, including crowds."""
        kept = self.is_used if crowds else self.is_used & ~self.is_crowd
        labels, before = self.labels[kept], np.concatenate([[0], np.cumsum(kept)])
        return [labels[start:stop] for start, stop in before[self.spans].tolist()]

    @abstractmethod
    def _annotations(self, index: int) -> Record:
        """Returns the part of a record that depends on the format: ``annotations`` or ``segments_info``."""


def positions(sorted_ids: Array, ids: Array) -> Array:
    """Returns the position of each id in ``sorted_ids``, which must not be empty; -1 for ids that it lacks."""
    found = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    return np.where(sorted_ids[found] == ids, found, -1)


def check_counts(
    images: Sequence[ImageEntry],
    owners: Array,
    max_objects: int | None,
    max_detections: int | None,
    problems: Problems,
    kind: str = "objects",
) -> int:
    """Reports images with more objects than a limit, and returns the largest number of objects in one image.

    Args:
        images: entries of the file.
        owners: (objects,) index of the image of each object.
        max_objects: number of queries; None: no limit.
        max_detections: number of detections per image in evaluation; None: no limit.
        problems: collects errors and warnings.
        kind: plural noun for the objects in messages.
    """
    counts = np.bincount(owners, minlength=len(images))
    most = int(counts.max(initial=0))
    remedy = f"Each query detects one object: set `max_objects` to at least {most}."
    consequence = f"AP cannot reach 100: set `max_detections` to at least {most} to evaluate all of them."
    for limit, what, add, sentence in (
        (max_objects, "queries", problems.add, remedy),
        (max_detections, "detections per image", problems.warn, consequence),
    ):
        rows = np.flatnonzero(counts > (most if limit is None else limit)).tolist()
        if rows:
            examples = (f"{images[row].file_name} has {counts[row]}" for row in rows)
            add(f"images with more {kind} than the {limit} {what}", examples, sentence, len(rows))
    return most


def check_classes(labels: Array, names: Sequence[str], root: str | None, problems: Problems) -> None:
    """Warns about classes without objects, unless there are no objects at all.

    Args:
        labels: (objects,) class ids.
        names: class names.
        root: name of the root category, see `entries.find_root`; None if there is none.
        problems: collects the warning.
    """
    counts = np.bincount(labels, minlength=len(names))
    unused = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if unused and len(labels):
        consequence = "They remain classes of the model."
        if root in unused:
            consequence += (
                f" {root!r} is the supercategory of all others, a root category that some exporters add: set "
                "`drop_root_category=True` to drop it."
            )
        problems.warn(f"classes without objects, out of {len(names)}", map(repr, unused), consequence, len(unused))
