"""Evaluates boxes, masks and panoptic segmentations on a data set, depending on the format of its annotations."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data import catalog
from ..data.panoptic import PanopticRecords
from ..data.records import Records
from ..errors import Fraction, NonNegativeInt, PositiveInt, check_ranges
from ..modeling import Detections, PanopticSegmentation
from .coco import CocoEvaluator, Metrics
from .lvis import LvisEvaluator
from .panoptic import PanopticEvaluator
from .tta import TestTimeAugmentationConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationConfig:
    """Postprocessing and metrics of an evaluation.

    Attributes:
        max_detections: maximum number of detections per image, best first.
        score_threshold: minimum score of a detection.
        thing_classes: classes that are detected as instances; empty: all.
        is_panoptic: whether to compute panoptic segmentations.
        panoptic_score_threshold: minimum score of a query in a panoptic segmentation.
        panoptic_min_area: panoptic segments of at most this number of pixels are dropped.
        tta: test-time augmentation, for a second evaluation; None: disabled.
    """

    max_detections: PositiveInt = 100
    score_threshold: Fraction = 0.0
    thing_classes: tuple[int, ...] = ()
    is_panoptic: bool = False
    panoptic_score_threshold: Fraction = 0.85
    panoptic_min_area: NonNegativeInt = 4
    tta: TestTimeAugmentationConfig | None = None

    def __post_init__(self) -> None:
        check_ranges(EvaluationConfig, vars(self))


def results_folder(output_dir: str | Path, test_sets: Sequence[str], name: str, *, tta: bool = False) -> str:
    """Returns the folder of a test set's results, which is a subfolder if the run has several test sets.

    Args:
        output_dir: output folder of the run; may be a URL.
        test_sets: all test sets of the run.
        name: name of the test set.
        tta: whether the results are those of test-time augmentation.
    """
    folder = os.path.join(output_dir, "inference_TTA" if tta else "inference")
    return os.path.join(folder, name) if len(test_sets) > 1 else folder


class Evaluator:
    """All evaluators of one data set.

    Args:
        records: data set.
        max_detections: maximum number of detections per image, best first.
        is_panoptic: whether to compute panoptic quality if the data set is in panoptic format.
        instances: instances of a panoptic data set with the same images, for AP; None: AP is not computed.
    """

    def __init__(
        self,
        records: Records,
        max_detections: int = 100,
        is_panoptic: bool = False,
        instances: Records | None = None,
    ) -> None:
        self.records = records
        self.spec = spec = records.spec
        summary = records.summary
        self.coco: CocoEvaluator | None = None
        self.panoptic: PanopticEvaluator | None = None
        if spec.panoptic_root is None:
            self.coco = (LvisEvaluator if summary.is_lvis else CocoEvaluator)(records, max_detections)
            return
        if is_panoptic:
            assert isinstance(records, PanopticRecords)
            self.panoptic = PanopticEvaluator(spec, summary.category_ids, records)
        if instances is not None:
            expected, names = summary.class_names[: summary.num_things], instances.summary.class_names
            catalog.check_same_classes(f"{spec.name} (things)", expected, spec.name, names)
            self.coco = CocoEvaluator(instances, max_detections)
        else:
            logger.info("%s: AP is not computed, because %s does not exist", spec.name, spec.instances_json)

    def reset(self) -> None:
        """Removes all results."""
        for part in (self.coco, self.panoptic):
            if part is not None:
                part.reset()

    def add(
        self,
        image_ids: Sequence[int],
        file_names: Sequence[str],
        detections: Sequence[Detections],
        segmentations: Sequence[PanopticSegmentation] | None = None,
    ) -> None:
        """Adds the results of a batch, in the original sizes of the images."""
        if self.coco is not None:
            self.coco.add(image_ids, detections)
        if self.panoptic is not None and segmentations is not None:
            for result in zip(image_ids, file_names, segmentations, strict=True):
                self.panoptic.add(*result)

    def evaluate(self, output_dir: Path) -> dict[str, Metrics]:
        """Returns metrics by kind: ``bbox``, ``segm``, ``panoptic_seg``; ``{}`` on ranks other than 0."""
        metrics: dict[str, Metrics] = {}
        for part in (self.coco, self.panoptic):
            if part is not None:
                metrics |= part.evaluate(output_dir)
        return metrics
