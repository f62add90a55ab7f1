"""Remaining time of a training run, with a simulated clock."""

from collections.abc import Callable

import pytest

from projects_deformable_detr.training.progress import RemainingTime

TOTAL, PERIOD = 2000, 500


def ratios(iteration: Callable[[int], float], evaluation: Callable[[int], float] = lambda step: 0.0) -> list[float]:
    """Returns the ratio of the estimated and the true remaining time after each iteration.

    Args:
        iteration, evaluation: seconds of an iteration, counted from 1, and of an evaluation after it.
    """
    now = 0.0
    remaining = RemainingTime(TOTAL, PERIOD, lambda: now)
    estimates, ends = [], []
    for step in range(1, TOTAL + 1):
        now += iteration(step)
        remaining.end_iteration()
        estimates.append(remaining.seconds(step))
        ends.append(now)
        if step % PERIOD == 0:
            now += evaluation(step)
            remaining.end_evaluation()
    return [estimate / max(now - end, 1e-9) for estimate, end in zip(estimates, ends, strict=True)]


def test_constant_speed() -> None:
    assert ratios(lambda step: 0.15)[:-1] == pytest.approx([1] * (TOTAL - 1))


@pytest.mark.parametrize(("before", "after"), [(0.15, 0.9), (0.9, 0.15), (1.5, 0.15), (0.15, 1.5)])
@pytest.mark.parametrize("change", [40, 800])
def test_change_of_speed(change: int, before: float, after: float) -> None:
    found = ratios(lambda step: before if step <= change else after)
    assert found[change + 30 : -1] == pytest.approx([1] * (TOTAL - change - 31), rel=0.2)


def test_time_after_an_evaluation() -> None:
    now = 0.0
    remaining = RemainingTime(30, 10, lambda: now)
    for step in range(1, 21):
        now += 1.0
        remaining.end_iteration()
        if step % 10 == 0:
            assert remaining.seconds(step) == 30 - step + (2 * 5 if step == 20 else 0)
            now += 5.0
            remaining.end_evaluation()
            assert remaining.seconds(step, is_evaluated=True) == 30 - step + (30 - step) / 10 * 5


def test_slow_first_iterations() -> None:
    found = ratios(lambda step: 8.0 if step == 1 else 1.0 if step < 4 else 0.15)
    assert found[6:-1] == pytest.approx([1] * (TOTAL - 7), rel=0.05)


def test_evaluations_slow_down_like_iterations() -> None:
    found = ratios(lambda step: 0.15 if step <= 800 else 0.9, lambda step: 20 if step <= 800 else 120)
    assert found[850:] == pytest.approx([1] * (TOTAL - 850), rel=0.2)


def test_pauses() -> None:
    found = ratios(lambda step: 2.0 if step % 8 == 0 else 0.1)  # such as waiting for data
    assert found[200:-100] == pytest.approx([1] * (TOTAL - 300), rel=0.1)
