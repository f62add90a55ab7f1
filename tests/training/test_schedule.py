"""Learning-rate schedules, compared with values computed by hand and with Detectron2."""

from typing import Any

import pytest
import torch

from projects_deformable_detr import get_cfg
from projects_deformable_detr.config.training import schedule_config
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.training import ScheduleConfig, build_scheduler


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


def test_warmup_and_steps_match_values_computed_by_hand() -> None:
    config = ScheduleConfig("WarmupMultiStepLR", 10, 1.0, steps=(6, 8), warmup_iters=4, warmup_factor=0.2)
    found = rates(build_scheduler(optimizer(), config), 10)
    expected = [0.2, 0.4, 0.6, 0.8, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [rate for rate, _ in found] == pytest.approx(expected)
    assert [rate for _, rate in found] == pytest.approx([0.1 * rate for rate in expected])


def configured(**changes: Any) -> Any:
    cfg = get_cfg("standalone")
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1.0, 10, (6, 8)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 4, 0.2
    cfg.SOLVER.update(changes)
    return cfg


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"WARMUP_METHOD": "constant"},
        {"WARMUP_ITERS": 0},
        {"WARMUP_ITERS": 50},
        {"STEPS": (6, 20)},
        {"STEPS": ()},
        {"RESCALE_INTERVAL": True},
        {"LR_SCHEDULER_NAME": "WarmupCosineLR"},
        {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.1, "RESCALE_INTERVAL": True},
        {"MAX_ITER": 997, "STEPS": (300, 700, 996), "WARMUP_ITERS": 123},
    ],
)
def test_rates_match_detectron2(changes: dict[str, Any]) -> None:
    solver = pytest.importorskip("detectron2.solver", reason="compares with Detectron2's schedules")
    cfg = configured(**changes)
    detectron2_cfg = cfg.clone()
    detectron2_cfg.SOLVER.STEPS = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
    schedule, reference = (
        build_scheduler(optimizer(), schedule_config(cfg)),
        solver.build_lr_scheduler(detectron2_cfg, optimizer()),
    )
    count = cfg.SOLVER.MAX_ITER - 1  # Detectron2's schedule is not defined after the end of an unfinished warm-up
    assert rates(schedule, count) == [pytest.approx(row) for row in rates(reference, count)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LR_SCHEDULER_NAME": "Staircase"}, "SOLVER.LR_SCHEDULER_NAME must be .* got 'Staircase'"),
        ({"WARMUP_METHOD": "cold"}, "SOLVER.WARMUP_METHOD must be one of 'linear', 'constant', got 'cold'"),
        ({"STEPS": (8, 6)}, r"SOLVER.STEPS must be increasing, got \(8, 6\)"),
        ({"MAX_ITER": 0}, "SOLVER.MAX_ITER must be at least 1, got 0"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 2.0}, "SOLVER.BASE_LR_END must be in .* got 2.0"),
    ],
)
def test_invalid_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule_config(configured(**changes))
