"""What is measured on a data set: boxes, masks, panoptic segmentations, by the format that its truth has."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import catalog, coco
from ..data.catalog import DatasetSpec
from ..data.coco import CocoSummary
from ..evaluation import panoptic_evaluation
from ..evaluation.panoptic_evaluation import PanopticResult
from ..modeling import Detections, PanopticSegmentation
from .evaluation import CocoEvaluator, gather
from .lvis_evaluation import LvisEvaluator

logger = logging.getLogger(__name__)


class PanopticEvaluator:
    """Gathers panoptic segmentations of one data set, over all ranks, and measures their quality."""

    def __init__(self, spec: DatasetSpec, summary: CocoSummary) -> None:
        self.spec = spec
        self.summary = summary
        self._results: list[PanopticResult] = []

    def reset(self) -> None:
        """Forgets all segmentations."""
        self._results = []

    def add(self, image_ids: Sequence[int], files: Sequence[str], found: Sequence[PanopticSegmentation]) -> None:
        """Takes segmentations in the size of the original images."""
        for image_id, file, item in zip(image_ids, files, found, strict=True):
            ids, categories = item.ids.cpu().numpy(), self.summary.category_ids
            self._results.append(PanopticResult.of(image_id, file, ids, item.segments, categories))

    def evaluate(self, output_dir: Path) -> dict[str, dict[str, float]]:
        """``{"panoptic_seg": metrics}`` in percent; ``{}`` on ranks other than 0."""
        results = gather(self._results)
        return {} if results is None else panoptic_evaluation.evaluate(self.spec, results, output_dir)


class Evaluator:
    """All evaluators of one of ``DATASETS.TEST``.

    Args:
        spec: the data set.
        summary: of its file.
        cfg: says whether there are masks and a panoptic segmentation, and how many detections count.
    """

    def __init__(self, spec: DatasetSpec, summary: CocoSummary, cfg: Any) -> None:
        self.spec = spec
        most = cfg.TEST.DETECTIONS_PER_IMAGE
        self.coco: CocoEvaluator | None = None
        self.panoptic: PanopticEvaluator | None = None
        if spec.panoptic_root is None:
            self.coco = (LvisEvaluator if summary.is_lvis else CocoEvaluator)(spec, summary, most)
            return
        if cfg.MODEL.DETR.PANOPTIC.ENABLED:
            self.panoptic = PanopticEvaluator(spec, summary)
        if spec.instances_json is not None and Path(spec.instances_json).is_file():
            things = replace(spec, json_file=spec.instances_json, panoptic_root=None, instances_json=None)
            names = coco.read_class_names(things)
            catalog.check_same_classes(
                f"{spec.name} (things)", summary.class_names[: summary.num_things], spec.name, names
            )
            self.coco = CocoEvaluator(things, replace(summary, class_names=names), most)
        else:
            logger.info("%s: there is no %s, so AP is not measured", spec.name, spec.instances_json)

    def reset(self) -> None:
        """Forgets what was found."""
        for part in (self.coco, self.panoptic):
            if part is not None:
                part.reset()

    def add(
        self,
        image_ids: Sequence[int],
        files: Sequence[str],
        detections: Sequence[Detections],
        segmentations: Sequence[PanopticSegmentation] | None,
    ) -> None:
        """Takes what was found in some images, in their original sizes."""
        if self.coco is not None:
            self.coco.add(image_ids, detections)
        if self.panoptic is not None and segmentations is not None:
            self.panoptic.add(image_ids, files, segmentations)

    def evaluate(self, output_dir: Path) -> dict[str, dict[str, float]]:
        """Metrics by kind: ``bbox``, ``segm``, ``panoptic_seg``; ``{}`` on ranks other than 0."""
        metrics: dict[str, dict[str, float]] = {}
        for part in (self.coco, self.panoptic):
            if part is not None:
                metrics |= part.evaluate(output_dir)
        return metrics
