"""Fixtures of the checkpoint tests: detectors with distinct tensors, and their comparison."""

import re
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
    """Checks that the weights of two modules are bitwise equal."""

    def check(one: nn.Module, other: nn.Module) -> None:
        found, expected = one.state_dict(), other.state_dict()
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert torch.equal(value, expected[key]), key

    return check


@pytest.fixture
def detectron2_name() -> Callable[..., str]:
    """Renames keys of torchvision's ResNet below a prefix to those of Detectron2's ResNet below another."""

    def rename(key: str, prefix: str = "", new_prefix: str = "") -> str:
        if not key.startswith(prefix):
            return key
        name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", key.removeprefix(prefix))
        name = name if name.startswith("res") else f"stem.{name}"
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        return new_prefix + re.sub(r"\bbn(\d)", r"conv\1.norm", name)

    return rename
