"""Finds the test sets of a run, and its detections: saved results that belong to its checkpoint, or new ones."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import CheckpointError, read_checkpoint
from ..checkpoint.files import checkpoint_in
from ..data.catalog import DatasetSpec
from ..data.coco import CocoRecords
from ..data.config import DataConfig
from ..data.load import load_dataset
from ..errors import UserError
from ..evaluation import results_folder
from ..evaluation.coco import CocoEvaluator, Result, read_results
from ..inference import Detector
from ..inference.evaluation import evaluate
from ..modeling import Predictions
from .analysis import Analysis, analyze, mean_ap
from .runs import Run

logger = logging.getLogger(__name__)
ERROR_ANALYSIS = "Error analysis"  # start of the names of parts in `Run.missing`


@dataclass(frozen=True)
class TestSet:
    """A data set for the error analysis.

    Attributes:
        spec: files in COCO's instances format.
        config: options for loading it.
        results: file in which an evaluation of the run saved its results.
    """

    __test__ = False  # not a test case of pytest

    spec: DatasetSpec
    config: DataConfig
    results: Path

    def load(self) -> CocoRecords:
        """Loads the annotations without masks; raises `UserError` if that is not possible, or for LVIS."""
        rule, drop_root = self.config.invalid_boxes, self.config.drop_root_category
        records = load_dataset(self.spec, rule, for_evaluation=True, drop_root_category=drop_root)
        if not isinstance(records, CocoRecords):
            raise UserError(f"{self.spec} is in the panoptic format, without an instances file")
        if records.summary.is_lvis:
            raise UserError(f"{self.spec} is in LVIS's format, whose annotations are not exhaustive")
        return records


class _BoxDetector(Detector):
    """Detector without masks, which are not analyzed and may not be annotated."""

    def _predict(self, images: Tensor) -> Predictions:
        return replace(super()._predict(images), masks=None)


def find_test_sets(run: Run, data: tuple[str, str] | None) -> list[TestSet]:
    """Returns the test sets of a run's config or, if given, of ``data``: an annotation file and an image folder.

    Those that are not available are added to ``run.missing``.
    """
    if data is not None:
        config = replace(run.data or DataConfig(), invalid_boxes="drop_many")
        given = DatasetSpec(Path(data[0]).name, *data)
        return [_test_set(run, given, config, [given.name])]
    if run.data is None or not run.data.test:
        reason = "the test set is unknown: name its files with --data JSON IMAGES"
        run.missing.append((ERROR_ANALYSIS, reason))
        return []
    found = []
    for name in run.data.test:
        if (spec := run.specs.get(name)) is None:
            reason = f"the data set {name} is not registered: name its files with --data JSON IMAGES"
            run.missing.append((ERROR_ANALYSIS, reason))
            continue
        found.append(_test_set(run, spec.instances(), run.data, run.data.test))
    return found


def _test_set(run: Run, spec: DatasetSpec, config: DataConfig, names: Sequence[str]) -> TestSet:
    folder = results_folder(run.folder, names, spec.name)
    return TestSet(spec, config, Path(folder, CocoEvaluator.results_name))


def find_errors(run: Run, test_set: TestSet, weights: str | None) -> Analysis | None:
    """Analyzes the detections of a run in a test set; if that is not possible, adds the reason to ``run.missing``.

    Saved results are used if they have the AP of an evaluation in ``metrics.json`` after the last iteration of the
    checkpoint that `Detector.load` opens, or if there is no such checkpoint. Otherwise, the checkpoint is evaluated.

    Args:
        run: the run.
        test_set: the data set.
        weights: model to evaluate instead of the run's; None: see above.
    """
    limit, model = test_set.config.max_detections or 100, weights or str(run.folder)
    try:
        if test_set.spec.panoptic_root is not None:
            raise UserError(f"{test_set.spec} has no instances file: name one with --data JSON IMAGES")
        records = test_set.load()
        if not records.summary.num_annotations:
            raise UserError(f"{test_set.spec} has no objects")
        results, iteration = ([], None) if weights else _saved_results(run, test_set, records, limit)
        source = f"{test_set.results}, saved by an unknown evaluation"
        if iteration is not None:
            source = f"{test_set.results}, saved by the evaluation after {run.completed(iteration)} iterations"
        if iteration is None or not _is_last(run.folder, iteration):
            try:
                results = _detect(run, test_set, records, model)
                source = f"detections of {model}, computed for this report"
            except Exception as error:  # also one of the model or the device, because saved results remain valid
                if not results:
                    reason = (
                        f"no saved results that belong to it, and its model cannot be evaluated ({error_text(error)})"
                    )
                    raise UserError(reason) from error
                reason = "the saved results are not those of its checkpoint, which cannot be evaluated"
                reason += f" ({error_text(error)})"
                run.missing.append((f"Detections of the last model in {test_set.spec.name}", reason))
        return analyze(records, results, limit, run.name, source)
    except Exception as error:  # not only a UserError, because the page has other parts and runs
        run.missing.append((f"{ERROR_ANALYSIS} of {test_set.spec.name}", error_text(error)))
        return None


def error_text(error: Exception) -> str:
    """Returns the message of an error; logs the traceback of an unexpected one, and adds its type."""
    if not isinstance(error, UserError):
        logger.error("Part of the report failed", exc_info=error)
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _saved_results(run: Run, test_set: TestSet, records: CocoRecords, limit: int) -> tuple[list[Result], int | None]:
    """Returns the saved results of a run ([]: none that are valid) and the last iteration with their AP, if any."""
    if not test_set.results.is_file():
        return [], None
    try:
        results = _read(test_set.results, records)
        ap = mean_ap(records, results, limit)
    except UserError as error:
        run.missing.append((f"Saved results for {test_set.spec.name}", str(error)))
        return [], None
    found = [
        iteration
        for metrics in run.metrics
        if metrics.kind == "bbox"
        for iteration, value in metrics.values.get("AP", {}).items()
        if np.isclose(value, ap, rtol=0, atol=1e-3)
    ]
    return results, max(found, default=None)


def _detect(run: Run, test_set: TestSet, records: CocoRecords, model: str) -> list[Result]:
    """Evaluates the boxes of a model."""
    detector = _BoxDetector.load(model)
    config = replace(detector.metadata.evaluation, is_panoptic=False)
    detector.metadata = replace(detector.metadata, has_masks=False, evaluation=config)
    logger.info("%s: detecting objects in %d images of %s", run.name, len(records), test_set.spec.name)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(records), unit=" images", disable=None) as bar:
        evaluate(detector, records, Path(folder), on_image=bar.update)
        return _read(Path(folder) / CocoEvaluator.results_name, records)


def _read(path: Path, records: CocoRecords) -> list[Result]:
    results = [row for rows in read_results(path, records).values() for row in rows]
    if not results:
        raise UserError("there are no detections")
    return results


def _is_last(folder: Path, iteration: int) -> bool:
    """Returns whether an evaluation belongs to the run's checkpoint, or there is none."""
    path = checkpoint_in(folder)
    last = None if path == folder else _last_iteration(path)
    return last is None or abs(last - iteration) <= 1  # Detectron2 counts the final evaluation as one later


def _last_iteration(path: Path) -> int | None:
    """Returns the last training iteration of a checkpoint; None if it is unknown."""
    try:
        content = read_checkpoint(path, mmap=True)
    except CheckpointError:
        return None
    if isinstance(content, dict) and isinstance(content.get("global_step"), int):  # Lightning checkpoint
        return int(content["global_step"]) - 1
    iteration = content.get("iteration") if isinstance(content, dict) else None
    return iteration if isinstance(iteration, int) else None
