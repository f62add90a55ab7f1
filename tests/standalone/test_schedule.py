"""Learning rates by iteration, by hand and beside Detectron2's."""

from typing import Any

import pytest
import torch

from projects_deformable_detr import get_cfg
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.standalone.schedule import build_scheduler


def configured(**changes: Any) -> Any:
    cfg = get_cfg("standalone")
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1.0, 10, (6, 8)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 4, 0.2
    for key, value in changes.items():
        cfg.SOLVER[key] = value
    return cfg


def optimizer() -> torch.optim.Optimizer:
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    return torch.optim.SGD(parameters, lr=1.0)


def rates(scheduler: Any, count: int) -> list[list[float]]:
    found = []
    for _ in range(count):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_warmup_and_steps_by_hand() -> None:
    found = rates(build_scheduler(configured(), optimizer()), 10)
    expected = [0.2, 0.4, 0.6, 0.8, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [rate for rate, _ in found] == pytest.approx(expected)
    assert [rate for _, rate in found] == pytest.approx([0.1 * rate for rate in expected])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"WARMUP_METHOD": "constant"},
        {"WARMUP_ITERS": 0},
        {"WARMUP_ITERS": 50},
        {"STEPS": (6, 20)},
        {"LR_SCHEDULER_NAME": "WarmupCosineLR"},
        {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.1, "RESCALE_INTERVAL": True},
    ],
)
def test_the_rates_are_detectron2s(changes: dict[str, Any]) -> None:
    solver = pytest.importorskip("detectron2.solver", reason="compares with Detectron2's schedules")
    cfg = configured(**changes)
    theirs = cfg.clone()
    theirs.SOLVER.STEPS = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
    ours, reference = build_scheduler(cfg, optimizer()), solver.build_lr_scheduler(theirs, optimizer())
    count = 9  # Detectron2's schedule is not defined after the last step of a warm-up that is never over
    assert rates(ours, count) == [pytest.approx(row) for row in rates(reference, count)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LR_SCHEDULER_NAME": "Staircase"}, "LR_SCHEDULER_NAME 'Staircase' is not known"),
        ({"WARMUP_METHOD": "cold"}, "WARMUP_METHOD 'cold' is not known"),
        ({"STEPS": (8, 6)}, "STEPS .* rising"),
        ({"MAX_ITER": 0}, "MAX_ITER is 0"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 2.0}, "BASE_LR_END 2.0"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_scheduler(configured(**changes), optimizer())
