"""Linear layers and convolutions through oneDNN, and compiled dropout."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ms_deform_attn import layers
from ms_deform_attn.layers import Dropout, Linear, conv2d, draw_seed, drop_, dropout_scale, linear, weight_gradient
from ms_deform_attn.library import LIBRARIES
from torch.nn import functional as F

compiled = pytest.mark.skipif(not LIBRARIES, reason="needs the compiled library")


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """Selects oneDNN, as on a processor where it is faster."""
    monkeypatch.setattr(layers, "onednn_is_faster", lambda: True)


def kernels(function):
    """Returns the names of the convolutions that a function calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key for event in profile.key_averages() if "conv" in event.key and "::_" not in event.key}


@contextlib.contextmanager
def num_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(300, 256), (3, 100, 256), (3, 2, 50, 256)])
def test_linear(shape, threads):
    torch.manual_seed(0)
    layer, x = Linear(256, 91), torch.randn(shape, requires_grad=True)
    expected = F.linear(x, layer.weight, layer.bias)
    grad = torch.randn_like(expected)
    inputs = x, layer.weight, layer.bias
    with num_threads(threads):
        assert "aten::mkldnn_convolution" in kernels(lambda: layer(x))
        output = layer(x)
        found, wanted = (torch.autograd.grad(y, inputs, grad) for y in (output, expected))
    assert output.is_contiguous() and output.shape == expected.shape
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    assert found[1].stride() == layer.weight.stride()


def test_linear_with_strides_without_bias_and_with_weight_views():
    x, weight = torch.randn(256, 600).t()[::2], torch.randn(256, 91).t()
    assert kernels(lambda: linear(x, weight))
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)


def test_weight_gradient():
    grad, x = torch.randn(300, 91), torch.randn(300, 256)
    assert kernels(lambda: weight_gradient(grad, x))
    torch.testing.assert_close(weight_gradient(grad, x), grad.t() @ x, rtol=1e-5, atol=1e-4)


def test_linear_can_be_differentiated_twice():
    x, weight = torch.randn(300, 256), torch.randn(91, 256, requires_grad=True)
    (grad,) = torch.autograd.grad((linear(x, weight) ** 2).sum(), weight, create_graph=True)
    grad.sum().backward()
    torch.testing.assert_close(weight.grad, 2 * (x.t() @ x.sum(1)).expand(91, -1), rtol=1e-3, atol=1e-1)


def test_graphs_and_other_types_have_linear_layers():
    layer, x = Linear(256, 91), torch.randn(300, 256)
    exported = torch.export.export(layer, (x,))
    nodes = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert nodes == [torch.ops.aten.linear.default]
    assert "conv" not in str(torch.jit.trace(layer, x, check_trace=False).graph)
    assert "conv" not in str(torch.fx.symbolic_trace(torch.nn.Sequential(layer)).graph)
    torch.testing.assert_close(torch.func.vmap(layer)(x[:, None]), layer(x)[:, None], rtol=1e-5, atol=1e-5)

    def others():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        layer.double()(x.double())
        with torch.backends.mkldnn.flags(enabled=False):
            layer.float()(x)
        with pytest.raises(RuntimeError, match="dtype"):
            layer(x.double())
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
            layer(x[:, 1:])
        linear(x, layer.weight.detach().to_sparse_csr())
        linear(x[:0], layer.weight)
        matmul = torch.backends.mkldnn.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
        layer(x)
        matmul.fp32_precision = before

    assert not kernels(others)


def test_small_products_do_not_use_onednn(monkeypatch):
    monkeypatch.setattr(layers, "onednn_is_faster", lambda: pytest.fail("was called"))
    for rows, channels, outputs in ((100, 256, 91), (80, 256, 1024), (20_000, 256, 4)):
        Linear(channels, outputs)(torch.randn(rows, channels))


@pytest.mark.parametrize(("setting", "expected"), [("0", False), ("1", True)])
def test_environment_variable_of_onednn(setting, expected, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("MS_DEFORM_ATTN_ONEDNN", setting)
    assert layers.onednn_is_faster.__wrapped__() is expected
    monkeypatch.setattr(layers, "_measure", lambda *_: pytest.fail("was called"))
    assert not layers.contiguous_is_faster.__wrapped__(1)


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_measurement_of_onednn(seconds, monkeypatch):
    monkeypatch.undo()
    clock = [0.0]

    def advance(by):
        assert not torch.is_autocast_enabled("cpu") and torch.get_num_threads() == 1
        clock[0] += by

    monkeypatch.delenv("MS_DEFORM_ATTN_ONEDNN", raising=False)
    monkeypatch.setattr(layers.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(F, "linear", lambda *_: advance(seconds))
    monkeypatch.setattr(F, "conv2d", lambda *_, **__: advance(1.0))
    threads = torch.get_num_threads()
    with torch.autocast("cpu", torch.bfloat16):
        assert layers.onednn_is_faster.__wrapped__() is (seconds > 1.3)
    assert torch.get_num_threads() == threads


CONVOLUTIONS = [  # kernel, stride, padding, dilation
    (1, (2, 2), 0, 1),
    (1, (2, 1), 0, 1),
    (1, (2, 2), 1, 1),
    (3, (1, 1), 1, 1),
    (3, (2, 2), 1, 1),
    (3, (1, 1), 2, 2),
]


@pytest.fixture
def copies(monkeypatch):
    """Selects the contiguous layout, as for large maps on a processor where it is faster; returns the calls."""
    calls = []
    apply = layers._CopyingConvolution.apply
    monkeypatch.setattr(layers, "_MIN_COPIED", 0)
    monkeypatch.setattr(layers, "contiguous_is_faster", lambda stride: True)
    monkeypatch.setattr(layers._CopyingConvolution, "apply", lambda *inputs: calls.append(inputs) or apply(*inputs))
    return calls


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), CONVOLUTIONS)
def test_gradients_of_convolutions(kernel, stride, padding, dilation, has_bias, threads, copies):
    torch.manual_seed(0)
    x = torch.randn(2, 32, 25, 34).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(24, 32, kernel, kernel, requires_grad=True)
    bias = torch.randn(24, requires_grad=True) if has_bias else None
    options = stride, (padding, padding), (dilation, dilation), 1
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    with num_threads(threads):
        outputs = conv2d(x, weight, bias, *options), F.conv2d(x, weight, bias, *options)
        torch.testing.assert_close(*outputs)
        grad = torch.randn_like(outputs[0])
        found, expected = (torch.autograd.grad(output, inputs, grad, create_graph=True) for output in outputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
        assert len(copies) == (kernel > 1) and found[0].is_contiguous(memory_format=torch.channels_last)
        seconds = [torch.autograd.grad(sum(g.square().sum() for g in grads), inputs[:2]) for grads in (found, expected)]
        torch.testing.assert_close(*seconds, rtol=1e-3, atol=1.0)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_with_a_frozen_input_or_weight(kernel, frozen, copies):
    inputs = [torch.randn(1, 32, 25, 34).contiguous(memory_format=torch.channels_last)]
    inputs.append(torch.randn(24, 32, kernel, kernel))
    trained = inputs[1 - frozen].requires_grad_()
    options = None, (2, 2), (kernel // 2,) * 2, (1, 1), 1
    (found,), (expected,) = (
        torch.autograd.grad(convolution(*inputs, *options).square().sum(), trained)
        for convolution in (conv2d, F.conv2d)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    assert len(copies) == (kernel > 1)


def test_other_convolutions_are_those_of_pytorch(copies, monkeypatch):
    x = torch.randn(1, 32, 50, 34).contiguous(memory_format=torch.channels_last)
    weight, strided = torch.randn(24, 32, 3, 3, requires_grad=True), ((2, 2), (1, 1), (1, 1), 1)
    conv2d(x, weight[:, :16], None, *strided[:3], 2)  # groups
    conv2d(x.contiguous(), weight, None, *strided)
    conv2d(x[:, :, :4, :4].contiguous(memory_format=torch.channels_last), weight, None, *strided)  # a small map
    conv2d(x.double(), weight.double(), None, *strided)
    torch.compile(conv2d, backend="eager", fullgraph=True)(x, weight, None, *strided)
    with torch.autocast("cpu", torch.bfloat16):
        conv2d(x, weight, None, *strided)
    with torch.no_grad():
        conv2d(x, weight, None, *strided)
    conv2d(x, weight.detach(), None, *strided)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        conv2d(x, weight, None, *strided)
    assert not copies
    conv2d(x, weight, None, *strided)
    assert len(copies) == 1


def test_small_convolutions_are_not_measured(monkeypatch):
    monkeypatch.setattr(layers, "contiguous_is_faster", lambda stride: pytest.fail("was called"))
    x = torch.randn(1, 64, 100, 134).contiguous(memory_format=torch.channels_last)
    conv2d(x, torch.randn(64, 64, 3, 3, requires_grad=True), None, (1, 1), (1, 1), (1, 1), 1)
    images = torch.randn(1, 3, 400, 544).contiguous(memory_format=torch.channels_last)
    conv2d(images, torch.randn(64, 3, 7, 7, requires_grad=True), None, (2, 2), (3, 3), (1, 1), 1)


@pytest.mark.parametrize("kernel", [1, 3])
def test_batched_gradients_of_convolutions(kernel, copies):
    x = torch.randn(1, 32, 25, 34).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, options = torch.randn(24, 32, kernel, kernel), (None, (2, 2), (kernel // 2,) * 2, (1, 1), 1)
    outputs = conv2d(x, weight, *options), F.conv2d(x, weight, *options)
    grads = torch.randn(3, *outputs[0].shape)
    found, expected = (torch.autograd.grad(output, x, grads, is_grads_batched=True) for output in outputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    (found,) = torch.func.vmap(lambda grad: torch.autograd.grad(conv2d(x, weight, *options), x, grad))(grads)
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-3)
    assert bool(copies) == (kernel > 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_pointwise_convolutions_compute_gradients_of_sampled_pixels(dtype, monkeypatch):
    x = torch.randn(1, 32, 25, 34).to(dtype, memory_format=torch.channels_last).requires_grad_()
    weight, strides, convolution = torch.randn(24, 32, 1, 1).to(dtype).requires_grad_(), [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *inputs: strides.append(inputs[3]) or convolution(*inputs))
    output = conv2d(x, weight, None, (2, 2), (0, 0), (1, 1), 1)
    expected = convolution(x, weight, None, (2, 2))
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous(memory_format=torch.channels_last)  # the height is odd
    for found, gradient in zip(
        torch.autograd.grad(output.float().square().sum(), (x, weight)),
        torch.autograd.grad(expected.float().square().sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(found, gradient, rtol=1e-2, atol=1e-2 if dtype == torch.float32 else 0.5)
        assert found.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        conv2d(x, weight, None, (2, 2), (0, 0), (1, 1), 1)
    conv2d(x.detach().contiguous(), weight, None, (2, 2), (0, 0), (1, 1), 1)  # in the contiguous layout
    assert strides == [(1, 1), (2, 2), (2, 2)]


def test_strided_pointwise_convolution_of_groups():
    x = torch.randn(1, 32, 25, 34).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, options = torch.randn(24, 16, 1, 1, requires_grad=True), ((2, 2), (0, 0), (1, 1), 2)
    outputs = conv2d(x, weight, None, *options), F.conv2d(x, weight, None, *options)
    torch.testing.assert_close(*outputs)
    found, expected = (torch.autograd.grad(output.square().sum(), (x, weight)) for output in outputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("is_faster", [False, True])
@pytest.mark.parametrize("is_trained", [False, True])
def test_strided_pointwise_convolutions_use_onednn_in_one_thread(is_trained, is_faster, monkeypatch):
    monkeypatch.setattr(layers, "onednn_is_faster", lambda: is_faster)
    x = torch.randn(1, 32, 101, 134).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(24, 32, 1, 1, requires_grad=is_trained)
    with num_threads(1), torch.profiler.profile() as profiler:
        conv2d(x, weight, None, (2, 2), (0, 0), (1, 1), 1)
    assert "aten::mkldnn_convolution" in {event.key for event in profiler.key_averages()}


def test_symbolic_trace_of_a_convolution():
    weight = torch.randn(24, 32, 1, 1, requires_grad=True)
    graph = torch.fx.symbolic_trace(lambda x: conv2d(x, weight, None, (2, 2), (0, 0), (1, 1), 1))
    x = torch.randn(1, 32, 25, 34).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(graph(x), F.conv2d(x, weight, None, (2, 2)))


def test_concurrent_measurements_restore_the_number_of_threads(monkeypatch):
    monkeypatch.undo()
    monkeypatch.delenv("MS_DEFORM_ATTN_ONEDNN", raising=False)
    with num_threads(2), ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(layers.onednn_is_faster.__wrapped__) for _ in range(8)]:
            future.result()
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 2


@pytest.mark.parametrize("seconds", [1.0, 3.0])
@pytest.mark.parametrize("stride", [1, 2])
def test_measurement_of_layouts(stride, seconds, monkeypatch):
    clock = [0.0]

    def backward(grad, input, *_):
        assert grad.shape == (1, 512, 25, 34) and torch.get_num_threads() == 1
        clock[0] += seconds if input.is_contiguous(memory_format=torch.channels_last) else 1.0
        return grad, None, None

    monkeypatch.delenv("MS_DEFORM_ATTN_ONEDNN", raising=False)
    monkeypatch.setattr(layers.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(layers, "_convolution_backward", backward)
    assert layers.contiguous_is_faster.__wrapped__(stride) is (seconds > 1.1)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_statistics(p, dtype):
    torch.manual_seed(0)
    dropout = Dropout(p)
    x = torch.ones(1000, 999, dtype=dtype, requires_grad=True)
    y = dropout(x)
    kept = y != 0
    assert abs(kept.float().mean() - (1 - p)) < 2e-3
    assert abs(y.float().mean() - 1) < 6e-3  # with the rounding of bfloat16
    for dim in (0, 1):  # neither rows nor columns share a mask
        assert (kept.float().mean(dim) - (1 - p)).abs().max() < 0.1
    for distance in (1, 2, 3, 4, 8, 32, 999):
        flat = kept.flatten()
        neighbors = (flat[distance:] & flat[:-distance]).float().mean()
        assert abs(neighbors - (1 - p) ** 2) < 2e-3
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@compiled
def test_masks_of_consecutive_seeds_are_independent():
    masks = torch.stack([drop_(torch.ones(4096), 0.5, seed) for seed in range(256)])
    correlation = torch.corrcoef(masks - 0.5).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / 4096**0.5  # six standard deviations
    assert abs(masks.mean() - 0.5) < 6 * 0.5 / masks.numel() ** 0.5
    counts = (
        (masks.view(256, -1, 4) * torch.tensor([1.0, 2.0, 4.0, 8.0])).sum(-1).flatten().long().bincount(minlength=16)
    )
    expected = masks.numel() / 4 / 16
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square with 15 degrees of freedom: p = 1e-5


@compiled
def test_mask_does_not_depend_on_type_threads_and_length():
    reference = drop_(torch.ones(100_003), 0.3, 7) != 0
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(drop_(torch.ones(100_003, dtype=dtype), 0.3, 7) != 0, reference)
    for length in (0, 1, 3, 31, 32, 33, 16_384, 16_385):
        assert torch.equal(drop_(torch.ones(length), 0.3, 7) != 0, reference[:length])
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(drop_(torch.ones(100_003), 0.3, 7) != 0, reference)
    torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_of_dropout(dtype):
    torch.manual_seed(0)
    x = torch.randn(60, 70).to(dtype).t()  # not contiguous
    torch.manual_seed(1)
    y = Dropout(0.3)(x)
    torch.manual_seed(1)
    mask = drop_(torch.ones(70, 60), 0.3, draw_seed())
    torch.testing.assert_close(y, (x.float() * dropout_scale(0.3) * mask).to(dtype), rtol=0, atol=0)
    nan = torch.full((1000,), torch.nan, dtype=dtype)
    assert (drop_(nan, 0.5, 3) == 0).float().mean() > 0.4  # dropped elements are zero, whatever they were


def test_dropout_follows_the_seed_and_the_mode():
    dropout, x = Dropout(0.5), torch.ones(300)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x) and not Dropout(1.0)(x).any()
    assert Dropout(0.999999)(x).isfinite().all()
    assert Dropout(0.5, inplace=True)(x) is x and not x.all()
    assert 0.3 < (Dropout(0.5)(torch.ones(300, dtype=torch.float64)) == 0).float().mean() < 0.7


def test_dropout_in_graphs_and_transforms():
    dropout, x = Dropout(0.5), torch.ones(64, 64)
    traced = torch.compile(dropout, backend="eager", fullgraph=True)
    assert 0.4 < (traced(x) == 0).float().mean() < 0.6
    assert 0.4 < (torch.func.vmap(dropout, randomness="different")(x) == 0).float().mean() < 0.6


@compiled
def test_invalid_arguments_of_the_operator():
    x, dropout = torch.ones(4, 4), torch.ops.ms_deform_attn.dropout
    for args, message in [
        ((x, 70_000, 0, 1.0, x), "threshold"),
        ((x, 1, 0, 1.0, torch.ones(3)), "output must have shape"),
        ((x, 1, 0, 1.0, x.bfloat16()), "dtype"),
        ((x[:, ::2], 1, 0, 1.0, torch.ones(4, 2)), "contiguous"),
        ((x.double(), 1, 0, 1.0, x.double()), "float32"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            dropout(*args)
