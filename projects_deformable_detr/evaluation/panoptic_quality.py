"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", arXiv 1801.00868, section 4.1), from the definition.

COCO's own implementation, panopticapi, is on no package registry under that name: this is what both engines compute
where it cannot be imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.panoptic_format import VOID

Ids = np.ndarray[Any, np.dtype[np.int32]]
Segments = Sequence[Mapping[str, Any]]
_MOST_IGNORED = 0.5  # a prediction is not counted when more of it than this is void or crowd


@dataclass
class _Counts:
    """Of one category: matched pairs, their summed IoU, predictions and objects without a match."""

    iou: float = 0.0
    matched: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.matched + self.false_positives + self.false_negatives

    def quality(self) -> tuple[float, float, float]:
        """(PQ, SQ, RQ) in [0, 1]: PQ = SQ * RQ, SQ the mean IoU of matches, RQ their F1 score."""
        if self.is_empty:
            return 0.0, 0.0, 0.0
        segmentation = self.iou / self.matched if self.matched else 0.0
        recognition = self.matched / (self.matched + 0.5 * (self.false_positives + self.false_negatives))
        return segmentation * recognition, segmentation, recognition


@dataclass
class PanopticQuality:
    """Gathers images one by one, then gives the metric.

    A predicted and a true segment match when they are of one category and their IoU is over 1/2, which makes the
    match unique. Void pixels of the truth belong to no union; a prediction without a match does not count where more
    than half of it is void, or crowd of its own category; crowds themselves need not be found.

    Args:
        is_thing: category id to whether it is a thing.
    """

    is_thing: Mapping[int, bool]
    _counts: dict[int, _Counts] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = {category: _Counts() for category in self.is_thing}

    def add(self, true_ids: Ids, true_segments: Segments, found_ids: Ids, found_segments: Segments) -> None:
        """Counts one image.

        Args:
            true_ids, found_ids: (H, W) segment ids; 0 is void, and so are, in the truth, ids without a segment.
            true_segments: dicts with ``id``, ``category_id`` and perhaps ``iscrowd``.
            found_segments: dicts with ``id`` and ``category_id``.

        Raises:
            ValueError: for maps of different sizes, a prediction's pixels of a segment that is not listed or listed
                segments without a pixel, or a category that is not known.
        """
        if true_ids.shape != found_ids.shape:
            raise ValueError(f"the truth is of {true_ids.shape} pixels, the prediction of {found_ids.shape}")
        truth = {segment["id"]: segment for segment in true_segments}
        found = {segment["id"]: segment["category_id"] for segment in found_segments}
        found_areas = _areas(found_ids)
        self._check(truth, found, found_areas)
        true_ids = np.where(np.isin(true_ids, list(truth)), true_ids, VOID)
        true_areas, overlaps = _areas(true_ids), _overlaps(true_ids, found_ids)
        pairs = self._match(truth, found, true_areas, found_areas, overlaps)
        matched_truth, matched_found = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
        for true_id, segment in truth.items():
            if true_id not in matched_truth and not segment.get("iscrowd", 0):
                self._counts[segment["category_id"]].false_negatives += 1
        for found_id, category in found.items():
            if found_id in matched_found:
                continue
            crowds = [i for i, s in truth.items() if s.get("iscrowd", 0) and s["category_id"] == category]
            ignored = sum(overlaps.get((true_id, found_id), 0) for true_id in [VOID, *crowds])
            if ignored <= _MOST_IGNORED * found_areas[found_id]:
                self._counts[category].false_positives += 1

    def _match(
        self,
        truth: dict[int, Any],
        found: dict[int, int],
        true_areas: dict[int, int],
        found_areas: dict[int, int],
        overlaps: dict[tuple[int, int], int],
    ) -> list[tuple[int, int]]:
        """Counts the matches, and returns them as pairs of ids."""
        pairs = []
        for (true_id, found_id), overlap in overlaps.items():
            if true_id == VOID or found_id == VOID or truth[true_id].get("iscrowd", 0):
                continue
            category = truth[true_id]["category_id"]
            if found[found_id] != category:
                continue
            union = true_areas[true_id] + found_areas[found_id] - overlap - overlaps.get((VOID, found_id), 0)
            if 2 * overlap > union:
                self._counts[category].matched += 1
                self._counts[category].iou += overlap / union
                pairs.append((true_id, found_id))
        return pairs

    def _check(self, truth: dict[int, Any], found: dict[int, int], found_areas: dict[int, int]) -> None:
        unlisted = set(found_areas) - set(found) - {VOID}
        absent = set(found) - set(found_areas)
        if unlisted or absent:
            raise ValueError(
                f"the prediction's map and its list of segments disagree: ids {sorted(unlisted)} are not listed, "
                f"{sorted(absent)} have no pixel"
            )
        unknown = {s["category_id"] for s in truth.values()} | set(found.values())
        unknown -= set(self.is_thing)
        if unknown:
            raise ValueError(f"categories {sorted(unknown)} are not known; known are {sorted(self.is_thing)}")

    def result(self, names: Mapping[int, str] | None = None) -> dict[str, float]:
        """``PQ``, ``SQ``, ``RQ``, those of things (``_th``) and of stuff (``_st``), in percent.

        Each is the mean over categories that occur in the truth or in predictions; NaN where none does.

        Args:
            names: category id to name; with it, also ``PQ-<name>`` of every category.
        """
        metrics: dict[str, float] = {}
        for suffix, wanted in (("", (True, False)), ("_th", (True,)), ("_st", (False,))):
            counts = [self._counts[i] for i, thing in self.is_thing.items() if bool(thing) in wanted]
            rows = [count.quality() for count in counts if not count.is_empty]
            means = np.mean(rows, axis=0) if rows else np.full(3, np.nan)
            for name, mean in zip(("PQ", "SQ", "RQ"), means, strict=True):
                metrics[name + suffix] = 100 * float(mean)
        for category, name in (names or {}).items():
            count = self._counts[category]
            metrics[f"PQ-{name}"] = np.nan if count.is_empty else 100 * count.quality()[0]
        return metrics

    @property
    def num_categories(self) -> tuple[int, int, int]:
        """How many categories each mean is over: all, things, stuff."""
        things = sum(bool(self.is_thing[i]) for i, count in self._counts.items() if not count.is_empty)
        every = sum(not count.is_empty for count in self._counts.values())
        return every, things, every - things


def _areas(ids: Ids) -> dict[int, int]:
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _overlaps(true_ids: Ids, found_ids: Ids) -> dict[tuple[int, int], int]:
    """(true id, found id): pixels that have both."""
    joint = true_ids.astype(np.int64) << 32 | found_ids.astype(np.int64)
    values, counts = np.unique(joint, return_counts=True)
    pairs = zip((values >> 32).tolist(), (values & 0xFFFFFFFF).tolist(), strict=True)
    return dict(zip(pairs, counts.tolist(), strict=True))
