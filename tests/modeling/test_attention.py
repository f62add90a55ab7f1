"""Multi-head attention in tiles."""

import pytest
import torch
from ms_deform_attn.layers import draw_seed, drop_, dropout_scale
from ms_deform_attn.library import LIBRARIES
from torch import nn

from projects_deformable_detr.modeling import attention
from projects_deformable_detr.modeling.attention import MultiheadAttention

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs the compiled library")


def expected_output(module, query, key, value, mask, tile, p):
    """Computes the attention from its definition, with the same masks of dropout."""
    torch.manual_seed(1)
    seed = draw_seed()
    n, q, c = query.shape
    inputs = zip((query, key, value), module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True)
    heads = [nn.functional.linear(*item).view(n, -1, 4, c // 4).transpose(1, 2).flatten(0, 1) for item in inputs]
    scores = heads[0] @ heads[1].mT / (c // 4) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask.repeat_interleave(4, 0)[:, None], -torch.inf)
    weights = scores.softmax(-1)
    masks = [drop_(torch.ones_like(item), p, seed + index) for index, item in enumerate(weights.split(tile))]
    output = (weights * torch.cat(masks).detach() * dropout_scale(p)) @ heads[2]
    return module.out_proj(output.view(n, 4, q, -1).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("limit", "tile"), [(1, 1), (7 * 9 * 3, 3), (2**20, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_training_with_dropout(limit, tile, masked, monkeypatch):
    monkeypatch.setattr(attention, "_TILE", limit)
    torch.manual_seed(0)
    module = MultiheadAttention(16, 4, 0.3)
    nn.init.normal_(module.in_proj_bias)
    query, key, value = (torch.randn(2, rows, 16, requires_grad=True) for rows in (7, 9, 9))
    mask = torch.arange(9) >= torch.tensor([[9], [5]]) if masked else None
    expected = expected_output(module, query, key, value, mask, tile, 0.3)
    torch.manual_seed(1)
    output = module(query, key, value, key_padding_mask=mask)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    inputs = query, key, value, *module.parameters()
    grad = torch.randn_like(output)
    found, wanted = (torch.autograd.grad(y, inputs, grad) for y in (output, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # also around the backward pass only
        torch.manual_seed(1)
        with torch.autocast("cpu", enabled=False):
            output = module(query, key, value, key_padding_mask=mask)
        rounded = torch.autograd.grad(output, inputs, grad)
    torch.testing.assert_close(rounded, found, rtol=0.1, atol=0.05)
    if masked:
        assert not found[1][1, 5:].any() and not found[2][1, 5:].any()


def test_modes_types_and_transforms():
    torch.manual_seed(0)
    module, plain = MultiheadAttention(16, 4, 0.3), nn.MultiheadAttention(16, 4, 0.3, batch_first=True)
    x = torch.randn(2, 5, 16)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(module(x, x, x).sum(), module.in_proj_weight, create_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x, x, x)
        output.float().sum().backward()
    assert output.dtype == torch.bfloat16 and module.in_proj_weight.grad.dtype == torch.float32
    assert module.bfloat16()(*[x.bfloat16()] * 3).dtype == torch.bfloat16
    module.float().double()(*[x.double()] * 3)  # by PyTorch
    plain.load_state_dict(module.float().eval().state_dict())
    torch.testing.assert_close(module(x, x, x), plain.eval()(x, x, x)[0])
    means = torch.stack([module.train()(x, x, x) for _ in range(300)]).mean(0)
    torch.testing.assert_close(means, module.eval()(x, x, x), rtol=0, atol=0.1)  # dropout preserves the mean
    found = torch.func.vmap(module.eval())(x[:, None], x[:, None], x[:, None])
    torch.testing.assert_close(found[:, 0], module(x, x, x))


def test_without_keys():
    """Images without valid tokens have no attention, in training as in evaluation."""
    torch.manual_seed(0)
    module = MultiheadAttention(16, 4, 0.3)
    query, key = (torch.randn(1, rows, 16, requires_grad=True) for rows in (3, 5))
    mask = torch.ones(1, 5, dtype=torch.bool)
    output = module(query, key, key, mask)
    torch.testing.assert_close(output, module.out_proj.bias.expand_as(output))
    torch.testing.assert_close(output, module.eval()(query, key, key, mask))
    assert not any(grad.any() for grad in torch.autograd.grad(output.sum(), (query, key)))
