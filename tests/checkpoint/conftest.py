"""Fixtures of the checkpoint tests: detectors with distinct tensors, and their comparison."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def shake() -> Callable[[nn.Module], nn.Module]:
    """Adds noise to all tensors, so that they are distinct and affect the outputs."""

    def add_noise(detector: nn.Module) -> nn.Module:
        for name, tensor in detector.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape), alpha=0.02 if name.startswith("backbone") else 0.1)
        return detector.eval()

    return add_noise


@pytest.fixture
def check_same() -> Callable[[nn.Module, nn.Module], None]:
    """Checks that the weights of two modules are bitwise the same."""

    def check(one: nn.Module, other: nn.Module) -> None:
        ours, theirs = one.state_dict(), other.state_dict()
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), key

    return check
