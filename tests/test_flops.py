"""FLOP counts, compared with manual counts."""

from pathlib import Path

import pytest
import torch
from torch import nn

from projects_deformable_detr.inference.flops import count_flops
from projects_deformable_detr.modeling.resnet import DeformableConv2d, ResNet

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def flops(load_script):
    return load_script("tools/flops.py")


class Attention(nn.Module):
    def forward(self, queries, keys):
        return nn.functional.scaled_dot_product_attention(queries, keys, keys)


@pytest.mark.parametrize(
    ("module", "shapes", "expected"),
    [
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), [(1, 4, 9, 7)], 5 * 4 * 8 * 4 * 9),
        (nn.Linear(6, 5), [(2, 3, 6)], 2 * 3 * 6 * 5),
        (nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(7), nn.MaxPool2d(2)), [(1, 4, 8, 7)], 0),
        (Attention(), [(1, 2, 5, 8), (1, 2, 7, 8)], 2 * (2 * 5 * 7 * 8)),
        (
            DeformableConv2d(4, stride=2, dilation=1, modulated=True, groups=2),
            [(1, 4, 8, 6)],
            12 * 9 * 4 * (4 + 4)
            + 12 * 9 * 4 * 54,  # convolution with sampling, and convolution for offsets and weights
        ),
    ],
)
def test_multiply_adds(module, shapes, expected):
    counted = count_flops(module.eval().requires_grad_(False), *(torch.randn(shape) for shape in shapes))
    assert counted * 1e9 == pytest.approx(expected)


def test_resnet50_has_the_flops_of_torchvision():
    # torchvision documents 4.09 GFLOPS at 224 x 224, classifier (2048 * 1000) included.
    counted = count_flops(ResNet(50).eval().requires_grad_(False), torch.zeros(1, 3, 224, 224))
    assert counted + 2048 * 1000 / 1e9 == pytest.approx(4.09, abs=0.005)


def test_flops_are_proportional_to_the_image(flops, make_cfg):
    parameters, (small, large) = flops.count(make_cfg(), [(64, 96), (128, 96)], num_classes=5)
    assert parameters > 0
    assert large == pytest.approx(2 * small, rel=0.1)  # except for the queries


def test_models_of_the_papers_are_configs(flops):
    names = {str(path.relative_to(flops.CONFIGS).with_suffix("")) for path in flops.coco_configs()}
    assert set(flops.PAPER) - {flops.FASTER_RCNN} <= names
    assert not any("Base" in name or name in ("quickstart", "small_r18_scratch") for name in names)


def test_documentation_has_all_configs_for_coco(flops):
    text = (ROOT / "docs" / "models.md").read_text()
    assert [path.stem for path in flops.coco_configs() if f"`{path.stem}`" not in text] == []
