"""Samplers of training and evaluation batches."""

import math
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
def test_start_and_ranks_only_choose_from_one_sequence(
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


def test_each_pass_has_every_image_once_and_another_order() -> None:
    draws = [draw for batch in first(10, [0] * 20, 4, 1) for draw in batch]  # two passes
    passes = [[index for _, index in draws[:20]], [index for _, index in draws[20:]]]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(20))
    assert passes[0] != passes[1]
    assert sorted(position for position, _ in draws) == list(range(40))


def test_seeds_give_other_sequences() -> None:
    assert first(3, [0] * 50, 5, 1) != first(3, [0] * 50, 5, 2)
    assert first(3, [0] * 50, 5, 1) == first(3, [0] * 50, 5, 1)


def test_batches_stay_within_a_group() -> None:
    groups = [0, 1, 1, 0, 1, 0, 0, 1, 1]
    batches = first(30, groups, 4, 0)
    assert all(len({groups[index] for _, index in batch}) == 1 for batch in batches)
    assert {groups[batch[0][1]] for batch in batches} == {0, 1}


@pytest.mark.parametrize(("groups", "size", "ranks"), [([0], 3, 2), ([0], 0, 1), ([], 2, 1)])
def test_impossible_batches_are_refused(groups: list[int], size: int, ranks: int) -> None:
    with pytest.raises(ValueError, match="multiple of the|at least one image"):
        TrainingBatchSampler(groups, size, 0, world_size=ranks)


def test_a_pass_has_each_image_as_often_as_its_factor_says() -> None:
    factors = torch.tensor([1.0, 2.0, 0.0, 1.25, 3.5])
    draws = [index for batch in first(3875, [0] * 5, 2, 0, factors=factors) for _, index in batch]  # 1,000 passes
    counts = [draws.count(index) / 1000 for index in range(5)]
    assert counts == pytest.approx(factors.tolist(), abs=0.05)
    assert counts[2] == 0
    # Whole factors are never rounded, and a pass is shuffled.
    one = [index for _, index in first(1, [0] * 3, 7, 4, factors=torch.tensor([1.0, 4.0, 2.0]))[0]]
    assert sorted(one) == [0, 1, 1, 1, 1, 2, 2] != one


@pytest.mark.parametrize("factors", [[1.0], [0.0, 0.0], [-1.0, 1.0], [math.nan, 1.0]])
def test_impossible_factors_are_refused(factors: list[float]) -> None:
    with pytest.raises(ValueError, match="factors must be 2 numbers"):
        TrainingBatchSampler([0, 0], 1, 0, factors=torch.tensor(factors))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2)), max_size=20),
    batch_size=st.integers(1, 4),
    ranks=st.integers(1, 3),
)
def test_evaluation_sees_every_image_once_and_never_pads(
    sizes: list[tuple[int, int]], batch_size: int, ranks: int
) -> None:
    batches = [batch for rank in range(ranks) for batch in evaluation_batches(sizes, batch_size, rank, ranks)]
    assert sorted(index for batch in batches for _, index in batch) == list(range(len(sizes)))
    assert all(len(batch) <= batch_size and len({sizes[index] for _, index in batch}) == 1 for batch in batches)
