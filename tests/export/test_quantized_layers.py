"""INT8 layers of AOTInductor: selection of layers, and ranges of their inputs."""

import pytest
import torch
from torch import nn

from projects_deformable_detr import build_detector
from projects_deformable_detr.config.inference import ModelMetadata
from projects_deformable_detr.modeling import layers

pytest.importorskip("torchao")
from projects_deformable_detr.export.quantized_layers import QuantizedLayer, quantize_layers

METADATA = ModelMetadata(tuple("abcde"), min_size=64, max_size=96)


def make_images(count):
    return [torch.randint(256, (3, 64, 96), dtype=torch.uint8) for _ in range(count)]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN", "GN"])
def test_all_convolutions_of_a_resnet_are_quantized(make_cfg, norm):
    model = build_detector(make_cfg(ENC_LAYERS=1, DEC_LAYERS=1, NORM=norm)).eval()
    convolutions = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.Conv2d)]
    quantized = quantize_layers(model, METADATA, make_images(1)).backbone
    assert all(isinstance(quantized.get_submodule(name), QuantizedLayer) for name in convolutions)


def test_range_is_an_average_over_images(make_cfg, monkeypatch):
    """Tiles of the feed-forward network belong to one image."""
    model = build_detector(make_cfg(ENC_LAYERS=1, DEC_LAYERS=1)).eval()
    images, scales = make_images(2), []
    for tile in (10**9, 5):
        monkeypatch.setattr(layers, "_TILE", tile)
        for chosen in (images, images[:1], images[1:]):
            ffn = quantize_layers(model, METADATA, chosen).encoder.layers[0].ffn
            scales.append((ffn.linear1.input_scale, ffn.linear2.input_scale))
    whole, tiled = scales[:3], scales[3:]
    torch.testing.assert_close(torch.tensor(tiled), torch.tensor(whole))
    torch.testing.assert_close(torch.tensor(whole[0]), torch.tensor(whole[1:]).mean(0))
