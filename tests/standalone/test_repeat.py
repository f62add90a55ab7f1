"""Repeat factors of training images: the paper's formula, Detectron2's numbers, and a training with them."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projects_deformable_detr.data.config import SamplerConfig
from projects_deformable_detr.data.sampling import class_repeat_factors, repeat_factors
from projects_deformable_detr.standalone import data, main
from projects_deformable_detr.standalone.sampler import TrainingBatchSampler

# Class 0 is in all four images, 1 in two, 2 in one; the last image has no object.
IMAGES = [np.array(labels, dtype=np.int64) for labels in ([0, 0], [0, 1, 1], [0, 1, 2], [0], [])]
OTHERS = [np.array(labels, dtype=np.int64) for labels in ([2], [2, 2], [1])]


def test_the_papers_formula() -> None:
    assert class_repeat_factors(IMAGES, 0.8, sqrt=False).tolist() == pytest.approx([1.0, 2.0, 4.0, 1.0, 1.0])
    assert class_repeat_factors(IMAGES, 0.8).tolist() == pytest.approx([1.0, 2**0.5, 2.0, 1.0, 1.0])


@pytest.mark.parametrize("sqrt", [True, False])
def test_factors_are_detectron2s(sqrt: bool) -> None:
    samplers = pytest.importorskip("detectron2.data.samplers", reason="compares with Detectron2's sampler")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 40, int(rng.integers(0, 5))) ** 2 // 40 for _ in range(200)]
    records = [{"annotations": [{"category_id": int(label)} for label in labels]} for labels in images]
    theirs = samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.1, sqrt=sqrt)
    ours = class_repeat_factors(images, 0.1, sqrt)
    assert torch.allclose(ours, theirs) and ours.max() > 1.5


def test_all_data_sets_are_counted_together_or_each_on_its_own() -> None:
    datasets = [("a", IMAGES), ("b", OTHERS)]
    assert repeat_factors(SamplerConfig(), datasets) is None  # every image once
    options = {"repeat_threshold": 0.8, "repeat_sqrt": False}
    together = repeat_factors(SamplerConfig("RepeatFactorTrainingSampler", **options), datasets)
    assert together is not None
    assert together.tolist() == class_repeat_factors([*IMAGES, *OTHERS], 0.8, sqrt=False).tolist()

    weights = {"dataset_weights": {"b": 0.5}}
    weighted = repeat_factors(SamplerConfig("WeightedTrainingSampler", **weights), datasets)
    assert weighted is not None and weighted.tolist() == [1.0] * 5 + [0.5] * 3

    both = repeat_factors(SamplerConfig("WeightedCategoryTrainingSampler", **weights, **options), datasets)
    assert both is not None
    alone = [1.0, 2.0, 4.0, 1.0, 1.0, 0.5 * 1.2, 0.5 * 1.2, 0.5 * 2.4]
    assert both.tolist() == pytest.approx([value / 0.6 for value in alone])


def test_a_training_draws_by_the_factors(
    make_args: Callable[..., Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    original = TrainingBatchSampler.__init__

    def spy(self: TrainingBatchSampler, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        made.append(self.factors)

    monkeypatch.setattr(TrainingBatchSampler, "__init__", spy)
    options = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 1.0)
    main(make_args(tmp_path, *options, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()"))
    assert made[0].shape == (16,) and made[0].min() > 1.0


@pytest.mark.parametrize("name", ["RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler"])
def test_a_data_set_may_be_named_twice(
    make_args: Callable[..., Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made: list[torch.Tensor] = []
    monkeypatch.setattr(data, "TrainingBatchSampler", lambda *_, factors, **__: made.append(factors) or [[(0, 0)]])
    options = ("DATALOADER.SAMPLER_TRAIN", name, "DATALOADER.REPEAT_THRESHOLD", 1.0, "SOLVER.MAX_ITER", 1)
    main(make_args(tmp_path, *options, "DATASETS.TRAIN", "('tiny_train', 'tiny_train')", "DATASETS.TEST", "()"))
    assert made[0].shape == (32,) and torch.equal(made[0][:16], made[0][16:]) and made[0].max() > 1
