"""Gradient clipping inside the optimizer's step."""

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from torch import nn

from projects_deformable_detr.detectron2_plugin import Trainer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def run_backward(model, scale=1.0):
    (model(torch.linspace(-1, 1, 20).reshape(5, 4)).square().sum() * 10 * scale).backward()


def test_the_full_models_norm_is_clipped_as_torch_does(make_cfg):
    ours, expected = network(), network()
    optimizer = Trainer.build_optimizer(make_cfg(SOLVER__OPTIMIZER="SGD"), ours)
    for model in (ours, expected):
        run_backward(model)
    norm = nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
    assert norm > 1  # else this test could not fail
    optimizer.step()
    for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_detectron2s_own_types_clip_as_detectron2(make_cfg, kind):
    from detectron2.solver.build import maybe_add_gradient_clipping

    cfg = make_cfg(SOLVER__OPTIMIZER="SGD", SOLVER__CLIP_GRADIENTS__CLIP_TYPE=kind)
    ours, theirs = network(), network()
    for model in (ours, theirs):
        run_backward(model)
    Trainer.build_optimizer(cfg, ours).step()
    maybe_add_gradient_clipping(cfg, torch.optim.SGD(theirs.parameters(), lr=0.1)).step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_scale_of_mixed_precision_does_not_change_the_step(make_cfg):
    plain, scaled = network(), network()
    cfg = make_cfg(SOLVER__AMP__ENABLED=True, SOLVER__BASE_LR=0.1)
    run_backward(plain)
    Trainer.build_optimizer(cfg, plain).step()

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = Trainer.build_optimizer(cfg, scaled)
    scaler.scale(torch.ones(()))  # the scaler is created on first use
    run_backward(scaled, scale=1024.0)
    scaler.step(optimizer)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
        torch.testing.assert_close(a, b)


def test_clipping_can_be_switched_off(make_cfg):
    model, untouched = network(), network()
    for each in (model, untouched):
        run_backward(each)
    Trainer.build_optimizer(make_cfg(SOLVER__CLIP_GRADIENTS__ENABLED=False), model).step()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
