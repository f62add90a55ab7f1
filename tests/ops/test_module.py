"""MSDeformAttn: initialization, padding, and the fused operator inside it."""

import ms_deform_attn as msda
import pytest
import torch
from ms_deform_attn.reference import locations_and_weights

SHAPES = [(6, 5), (3, 4)]


def test_initial_offsets_point_in_eight_directions() -> None:
    module = msda.MSDeformAttn(256, 4, 8, 4)
    bias = module.sampling_offsets.bias.detach().view(8, 4, 4, 2)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for k in range(4):
        torch.testing.assert_close(bias[:, 0, k], (k + 1) * torch.tensor(compass, dtype=torch.float32))
    assert torch.equal(bias, bias[:, :1].expand_as(bias))
    assert not module.sampling_offsets.weight.any()
    assert not module.attention_weights.weight.any() and not module.attention_weights.bias.any()
    assert {n.split(".")[0] for n, _ in module.named_parameters()} == {
        "sampling_offsets",
        "attention_weights",
        "value_proj",
        "output_proj",
    }


@pytest.mark.parametrize("values", [2, 4])
def test_equals_its_parts(values: int) -> None:
    module = msda.MSDeformAttn(24, 2, 3, 2).double()
    torch.nn.init.normal_(module.sampling_offsets.weight)
    torch.nn.init.normal_(module.attention_weights.weight)
    query, tokens = torch.randn(2, 7, 24).double(), torch.randn(2, 42, 24).double()
    points, mask = torch.rand(2, 7, 2, values).double(), torch.rand(2, 42) < 0.3
    value = module.value_proj(tokens).masked_fill(mask[..., None], 0).view(2, 42, 3, 8)
    offsets = module.sampling_offsets(query).view(2, 7, 3, 2, 2, 2)
    loc, weights = locations_and_weights(SHAPES, points, offsets, module.attention_weights(query).view(2, 7, 3, 2, 2))
    wanted = module.output_proj(msda.ms_deform_attn_reference(value, SHAPES, [0, 30], loc, weights))
    torch.testing.assert_close(module(query, points, tokens, SHAPES, [0, 30], mask), wanted)


def test_offsets_are_pixels_of_width_and_height() -> None:
    """An offset of (1, 0) moves one pixel to the right on a level that is not square."""
    shapes = torch.tensor([[2, 8]])
    loc, _ = locations_and_weights(
        shapes,
        torch.full((1, 1, 1, 2), 0.5),
        torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 1, 2),
        torch.zeros(1, 1, 1, 1, 1),
    )
    torch.testing.assert_close(loc.flatten(), torch.tensor([0.5 + 1 / 8, 0.5]))


def test_reference_points_get_a_gradient() -> None:
    module = msda.MSDeformAttn(16, 2, 2, 3).double()
    points = torch.rand(1, 5, 2, 4).double().requires_grad_()
    query, tokens = torch.randn(1, 5, 16).double(), torch.randn(1, 42, 16).double()
    assert torch.autograd.gradcheck(lambda p: module(query, p, tokens, SHAPES), points, fast_mode=True)


def test_reference_points_keep_their_precision_under_autocast() -> None:
    """Rounded to bfloat16, a point on a level 160 pixels wide would move by up to a third of a pixel."""
    module = msda.MSDeformAttn(d_model=8, n_levels=1, n_heads=1, n_points=1)
    torch.nn.init.zeros_(module.sampling_offsets.bias)
    for projection in (module.value_proj, module.output_proj):
        torch.nn.init.eye_(projection.weight)
    tokens = (torch.arange(160) % 2).float()[None, :, None].expand(1, -1, 8)  # a slope of one per pixel
    pixels = torch.tensor([100.3, 120.6, 151.2])
    points = torch.stack([(pixels + 0.5) / 160, torch.full((3,), 0.5)], -1).view(1, 3, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(torch.zeros(1, 3, 8), points, tokens, [(1, 160)])
    torch.testing.assert_close(output[0, :, 0].float(), torch.tensor([0.3, 0.6, 0.8]), atol=0.01, rtol=0)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_wrong_number_of_levels(as_tensor: bool) -> None:
    module, sizes = msda.MSDeformAttn(16, 4, 2, 1), [(4, 4), (2, 2), (1, 1)]
    query, tokens = torch.randn(1, 5, 16), torch.randn(1, 21, 16)
    given = torch.tensor(sizes) if as_tensor else sizes
    with pytest.raises(ValueError, match="input_spatial_shapes must have n_levels = 4 levels, got 3"):
        module(query, torch.rand(1, 5, 3, 2), tokens, given)
    with pytest.raises(ValueError, match="reference_points must have n_levels = 4 levels, got 3"):
        module(query, torch.rand(1, 5, 3, 2), tokens, [*sizes, (1, 1)])
