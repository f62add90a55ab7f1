"""Feed-forward network in tiles."""

import pytest
import torch
from ms_deform_attn.layers import draw_seed, drop_, dropout_scale

from projects_deformable_detr.modeling import layers
from projects_deformable_detr.modeling.layers import FeedForward, LayerConfig


def run(network, x, tiled, monkeypatch):
    """Returns output and gradients of the same pass; without tiles, a hook makes the network call its layers."""
    tiles, hook = [], None if tiled else network.linear2.register_forward_hook(lambda *_: None)
    compute = layers._hidden_channels
    with monkeypatch.context() as patch:
        patch.setattr(layers, "_hidden_channels", lambda *args: tiles.append(args) or compute(*args))
        torch.manual_seed(1)
        output = network(x)
        factors = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(output.dtype)
        (output * factors).sum().backward()
    assert bool(tiles) == tiled
    gradients = [tensor.grad for tensor in (x, *network.parameters())]
    for tensor in (x, *network.parameters()):
        tensor.grad = None
    if hook is not None:
        hook.remove()
    return [output.detach(), *gradients]


def assert_near(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert other.norm() > 0 and (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_tiles_equal_the_whole(pre_norm, monkeypatch):
    torch.manual_seed(0)
    network = FeedForward(LayerConfig(32, 4, 64, dropout=0.0, pre_norm=pre_norm))
    x = torch.randn(2, 1250, 32, requires_grad=True)  # three tiles
    whole, tiled = (run(network, x, flag, monkeypatch) for flag in (False, True))
    assert_near(tiled, whole, 1e-5)
    with torch.no_grad():
        torch.testing.assert_close(network(x), whole[0], rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(run(network, x, True, monkeypatch), run(network, x, False, monkeypatch), 0.02)


def test_gradients_of_frozen_parameters_are_not_computed(monkeypatch):
    network = FeedForward(LayerConfig(8, 4, 16, dropout=0.0))
    network.linear1.weight.requires_grad_(False)
    network.linear2.requires_grad_(False)
    found = run(network, torch.randn(1, 30, 8, requires_grad=True), True, monkeypatch)
    assert [tensor is None for tensor in found[2:6]] == [True, False, True, True] and found[1].any()


def test_second_derivatives_are_an_error():
    network, x = FeedForward(LayerConfig(8, 4, 16)), torch.randn(1, 30, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(network(x)[0, 0, 0], x, create_graph=True)


def test_function_transforms():
    network, x = FeedForward(LayerConfig(8, 4, 16, dropout=0.0)), torch.randn(3, 1, 30, 8)
    expected = torch.stack([network(item) for item in x])
    torch.testing.assert_close(torch.func.vmap(network)(x), expected)
    torch.func.jvp(network, (x[0],), (x[1],))


def test_dropout_of_hidden_channels(monkeypatch):
    """Output and gradients are those of a network whose hidden channels are dropped, with one mask for each tile."""
    torch.manual_seed(0)
    network = FeedForward(LayerConfig(16, 4, 64, dropout=0.3))
    network.dropout2.p = 0.0
    x = torch.randn(2, 1000, 16, requires_grad=True)  # two tiles
    found = run(network, x, True, monkeypatch)
    torch.manual_seed(1)
    seed = draw_seed()
    masks = [drop_(torch.ones(rows, 64), 0.3, seed + index) for index, rows in enumerate((1024, 976))]
    factor = torch.cat(masks).view(2, 1000, 64) * dropout_scale(0.3)
    network.dropout1.forward = lambda hidden: hidden * factor
    expected = run(network, x, False, monkeypatch)
    assert_near(found, expected, 1e-5)
    assert all(tensor.abs().max() > 0 for tensor in found)
    assert abs(factor.mean() - 1) < 0.01 and not torch.equal(factor[0, :900], factor[1, 24:924])


def test_layers_of_other_types_are_called():
    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network = FeedForward(LayerConfig(8, 4, 16)).eval()
    x = torch.randn(1, 30, 8)
    before = network(x)
    network.linear2.__class__ = Scaled
    assert not torch.allclose(network(x), before)
    network.linear2.__class__ = torch.nn.Linear
    network.linear2.forward = lambda hidden: 3 * torch.nn.functional.linear(hidden, network.linear2.weight)
    assert not torch.allclose(network(x), before)
    with pytest.raises(RuntimeError, match="dtype"):
        network(x.bfloat16())


@pytest.mark.parametrize("training", [False, True])
def test_hooks_see_hidden_channels_before_the_activation(training):
    network = FeedForward(LayerConfig(8, 4, 16, dropout=0.5)).train(training)
    seen = []
    network.linear1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    network.linear1.register_full_backward_hook(lambda *_: None)
    network(torch.randn(1, 30, 8, requires_grad=True)).sum().backward()
    assert seen[0].min() < 0
