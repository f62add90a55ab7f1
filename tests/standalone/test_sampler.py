"""Samplers of training and evaluation batches, and repeat factors of training images."""

import math
from argparse import Namespace
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from projects_deformable_detr.data.config import SamplerConfig
from projects_deformable_detr.data.sampling import class_repeat_factors, repeat_factors
from projects_deformable_detr.standalone import data, main
from projects_deformable_detr.standalone.sampler import TrainingBatchSampler, evaluation_batches


def first(count: int, *arguments: object, **options: object) -> list[list[tuple[int, int]]]:
    return list(islice(TrainingBatchSampler(*arguments, **options), count))  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(0, 1), min_size=1, max_size=12),
    per_rank=st.integers(1, 3),
    ranks=st.integers(1, 3),
    start=st.integers(0, 15),
    seed=st.integers(0, 5),
    repeated=st.booleans(),
)
def test_start_and_rank_select_from_one_sequence(
    groups: list[int], per_rank: int, ranks: int, start: int, seed: int, repeated: bool
) -> None:
    size = per_rank * ranks
    factors = 0.5 + torch.arange(len(groups)) % 3 if repeated else None
    whole = first(start + 3, groups, size, seed, factors=factors)
    one_of = {"start": start, "world_size": ranks, "factors": factors}
    parts = [first(3, groups, size, seed, rank=rank, **one_of) for rank in range(ranks)]
    for index, batch in enumerate(whole[start:]):
        assert all(len(part[index]) == per_rank for part in parts)
        assert sorted(draw for part in parts for draw in part[index]) == sorted(batch)


def test_epochs_have_every_image_once_in_different_orders() -> None:
    draws = [draw for batch in first(10, [0] * 20, 4, 1) for draw in batch]  # two epochs
    epochs = [[index for _, index in draws[:20]], [index for _, index in draws[20:]]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]
    assert sorted(position for position, _ in draws) == list(range(40))


def test_sequence_depends_on_the_seed() -> None:
    assert first(3, [0] * 50, 5, 1) != first(3, [0] * 50, 5, 2)
    assert first(3, [0] * 50, 5, 1) == first(3, [0] * 50, 5, 1)


def test_batches_have_images_of_one_group() -> None:
    groups = [0, 1, 1, 0, 1, 0, 0, 1, 1]
    batches = first(30, groups, 4, 0)
    assert all(len({groups[index] for _, index in batch}) == 1 for batch in batches)
    assert {groups[batch[0][1]] for batch in batches} == {0, 1}


@pytest.mark.parametrize(("groups", "size", "ranks"), [([0], 3, 2), ([0], 0, 1), ([], 2, 1)])
def test_invalid_batch_sizes(groups: list[int], size: int, ranks: int) -> None:
    with pytest.raises(ValueError, match="multiple of the|at least one image"):
        TrainingBatchSampler(groups, size, 0, world_size=ranks)


def test_images_are_repeated_by_their_factors() -> None:
    factors = torch.tensor([1.0, 2.0, 0.0, 1.25, 3.5])
    draws = [index for batch in first(3875, [0] * 5, 2, 0, factors=factors) for _, index in batch]  # 1,000 epochs
    counts = [draws.count(index) / 1000 for index in range(5)]
    assert counts == pytest.approx(factors.tolist(), abs=0.05)
    assert counts[2] == 0
    # Integer factors are exact, and epochs are shuffled.
    one = [index for _, index in first(1, [0] * 3, 7, 4, factors=torch.tensor([1.0, 4.0, 2.0]))[0]]
    assert sorted(one) == [0, 1, 1, 1, 1, 2, 2] != one


@pytest.mark.parametrize("factors", [[1.0], [0.0, 0.0], [-1.0, 1.0], [math.nan, 1.0]])
def test_invalid_factors(factors: list[float]) -> None:
    with pytest.raises(ValueError, match="factors must be 2 numbers"):
        TrainingBatchSampler([0, 0], 1, 0, factors=torch.tensor(factors))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2)), max_size=20),
    batch_size=st.integers(1, 4),
    ranks=st.integers(1, 3),
)
def test_evaluation_batches_have_every_image_once_and_one_size(
    sizes: list[tuple[int, int]], batch_size: int, ranks: int
) -> None:
    batches = [batch for rank in range(ranks) for batch in evaluation_batches(sizes, batch_size, rank, ranks)]
    found = sorted(index for batch in batches for _, index in batch)
    if len(batches) > ranks or ranks == 1:
        assert found == list(range(len(sizes)))
    assert set(found) == set(range(len(sizes)))
    assert len(batches) >= ranks or not sizes  # every rank runs the model
    assert all(len(batch) <= batch_size and len({sizes[index] for _, index in batch}) == 1 for batch in batches)


# Class 0 is in all four images, 1 in two, 2 in one; the last image has no object.
IMAGES = [np.array(labels, dtype=np.int64) for labels in ([0, 0], [0, 1, 1], [0, 1, 2], [0], [])]
OTHERS = [np.array(labels, dtype=np.int64) for labels in ([2], [2, 2], [1])]


def test_repeat_factors_of_the_paper() -> None:
    assert class_repeat_factors(IMAGES, 0.8, sqrt=False).tolist() == pytest.approx([1.0, 2.0, 4.0, 1.0, 1.0])
    assert class_repeat_factors(IMAGES, 0.8).tolist() == pytest.approx([1.0, 2**0.5, 2.0, 1.0, 1.0])


@pytest.mark.parametrize("sqrt", [True, False])
def test_repeat_factors_match_detectron2(sqrt: bool) -> None:
    samplers = pytest.importorskip("detectron2.data.samplers", reason="compares with Detectron2's sampler")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 40, int(rng.integers(0, 5))) ** 2 // 40 for _ in range(200)]
    records = [{"annotations": [{"category_id": int(label)} for label in labels]} for labels in images]
    expected = samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.1, sqrt=sqrt)
    found = class_repeat_factors(images, 0.1, sqrt)
    assert torch.allclose(found, expected) and found.max() > 1.5


def test_repeat_factors_of_several_data_sets() -> None:
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


@pytest.mark.parametrize("name", ["RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler"])
def test_training_uses_the_repeat_factors(
    make_args: Callable[..., Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made: list[torch.Tensor] = []
    monkeypatch.setattr(data, "TrainingBatchSampler", lambda *_, factors, **__: made.append(factors) or [[(0, 0)]])
    options = ("DATALOADER.SAMPLER_TRAIN", name, "DATALOADER.REPEAT_THRESHOLD", 1.0, "SOLVER.MAX_ITER", 1)
    main(make_args(tmp_path, *options, "DATASETS.TEST", "()"))
    assert len(made[0]) == 16 and made[0].max() > 1
