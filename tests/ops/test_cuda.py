"""The CUDA kernels on a GPU: generated code, atomic additions, streams, graphs and errors.

test_cuda_emulation.py tests the kernels' arithmetic without a GPU. ops/gpu_check.py runs this file among other checks.
"""

from collections.abc import Sequence

import ms_deform_attn as msda
import op_helpers as op
import pytest
import torch
from ms_deform_attn.library import LIBRARIES
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
if "cuda" not in LIBRARIES:
    pytest.skip("ms_deform_attn was built without CUDA kernels", allow_module_level=True)

USUAL = op.Size(2, ((20, 27), (10, 14), (5, 7), (3, 4)), 8, 32, 300, 4)
CUDA_SIZES = [
    *op.SIZES,
    USUAL,
    op.Size(1, ((9, 7), (4, 4)), 4, 64, 50, 4),
    op.Size(1, ((9, 7), (4, 4)), 4, 128, 50, 4),
    op.Size(1, ((9, 7),), 2, 8, 1, 1),
    op.Size(1, ((40, 40), (20, 20)), 8, 32, 3000, 4),  # blocks of 256 threads
    op.Size(1, ((5, 4), (2, 2)), 2, 8, 2, 700),  # more points than shared memory holds
]


def gpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.cuda() for t in tensors]


def cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.cpu() for t in tensors]


def results_of(size: op.Size, tensors: Sequence[Tensor], grad: Tensor, shapes: object = None) -> list[Tensor]:
    function = (op.FUSED if len(tensors) == 4 else op.PLAIN)[0]
    return op.forward_backward(function, tensors, shapes if shapes is not None else list(size.shapes), grad)


@pytest.mark.parametrize("fixed_order", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("values", [0, 2, 4], ids=["plain", "fused2", "fused4"])
@pytest.mark.parametrize(("dtype", "points"), op.TYPES, ids=str)
@pytest.mark.parametrize("size", CUDA_SIZES, ids=str)
def test_against_reference(
    size: op.Size, dtype: torch.dtype, points: torch.dtype, values: int, fixed_order: bool
) -> None:
    tensors, grad = op.make(size, dtype, values, points), op.grad_like_output(size, dtype)
    with op.deterministic(fixed_order):
        got = results_of(size, gpu(tensors), grad.cuda())
    op.assert_near(got, op.reference_of(size, tensors, grad))


@pytest.mark.parametrize("values", [0, 4], ids=["plain", "fused"])
def test_deterministic(values: int) -> None:
    """Twenty runs in which many queries sample few pixels are bitwise identical."""
    size = op.Size(2, ((6, 5), (3, 3)), 4, 32, 4000, 4)
    tensors, grad = gpu(op.make(size, torch.float32, values)), op.grad_like_output(size, torch.float32).cuda()
    with op.deterministic():
        first = results_of(size, tensors, grad)
        for _ in range(20):
            op.assert_equal(results_of(size, tensors, grad), first)


def test_strides() -> None:
    tensors, grad = gpu(op.make_plain(USUAL, torch.float32)), op.grad_like_output(USUAL, torch.float32).cuda()
    value, loc, weights = tensors
    wanted = cpu(results_of(USUAL, tensors, grad))
    points = [loc.flip(0).contiguous().flip(0), weights.transpose(1, 4).contiguous().transpose(1, 4)]
    for strided in op.unusual_strides(value):
        got = results_of(USUAL, [strided, *points], grad.flip(0).contiguous().flip(0))
        op.assert_near(got, wanted)


def test_non_finite_locations_contribute_nothing() -> None:
    tensors, grad = op.make_plain(USUAL, torch.float32), op.grad_like_output(USUAL, torch.float32)
    for i, bad in enumerate(op.NON_FINITE):
        tensors[1][:, 7 * i : 7 * i + 5, i % 8, i % 4, i % 4, i % 2] = bad
    got = results_of(USUAL, gpu(tensors), grad.cuda())
    assert all(t.isfinite().all() for t in got)
    op.assert_near(got, op.reference_of(USUAL, tensors, grad))


def test_shapes_as_tensors() -> None:
    """On the CPU, and on the GPU, where the kernel reads them."""
    tensors, grad = gpu(op.make_plain(USUAL, torch.float32)), op.grad_like_output(USUAL, torch.float32).cuda()
    wanted = cpu(results_of(USUAL, tensors, grad))
    table = torch.tensor(USUAL.shapes)
    for shapes in (table, table.cuda(), table.t().contiguous().t().cuda()):
        op.assert_near(results_of(USUAL, tensors, grad, shapes), wanted)


def test_no_synchronization() -> None:
    tensors, grad = gpu(op.make_fused(USUAL, torch.bfloat16, 2)), op.grad_like_output(USUAL, torch.bfloat16).cuda()
    shapes = torch.tensor(USUAL.shapes).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for given in (list(USUAL.shapes), shapes):
            results_of(USUAL, tensors, grad, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fixed_order", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("on_gpu", [False, True], ids=["integers", "tensor"])
def test_graph_capture(on_gpu: bool, fixed_order: bool) -> None:
    """A captured forward and backward reads its inputs at replay."""
    tensors, grad = gpu(op.make_fused(USUAL, torch.float16, 4)), op.grad_like_output(USUAL, torch.float16).cuda()
    shapes: object = torch.tensor(USUAL.shapes).cuda() if on_gpu else list(USUAL.shapes)
    with op.deterministic(fixed_order):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            results_of(USUAL, tensors, grad, shapes)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results_of(USUAL, tensors, grad, shapes)
    fresh = op.make_fused(USUAL, torch.float16, 4, seed=7)
    for t, new in zip(tensors, fresh, strict=True):
        t.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    op.assert_near(captured, op.reference_of(USUAL, fresh, grad.cpu()))


def test_current_stream() -> None:
    """The kernels run on the current stream."""
    tensors, grad = op.make_plain(USUAL, torch.float32), op.grad_like_output(USUAL, torch.float32)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = [torch.zeros_like(t, device="cuda") for t in tensors]
        torch.cuda._sleep(50_000_000)
        for t, source in zip(late, gpu(tensors), strict=True):
            t.copy_(source)
        got = results_of(USUAL, late, grad.cuda())
    side.synchronize()
    op.assert_near(got, op.reference_of(USUAL, tensors, grad))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_of_the_tensors_instead_of_the_current_one() -> None:
    tensors, grad = op.make_plain(USUAL, torch.float32), op.grad_like_output(USUAL, torch.float32)
    with torch.cuda.device(0):
        got = results_of(USUAL, [t.to("cuda:1") for t in tensors], grad.to("cuda:1"))
        assert torch.cuda.current_device() == 0
    assert all(t.device == torch.device("cuda:1") for t in got)
    op.assert_near(got, op.reference_of(USUAL, tensors, grad))


def test_invalid_arguments_are_named() -> None:
    value, loc, weights = gpu(op.make_plain(USUAL, torch.float32))
    shapes = list(USUAL.shapes)
    for message, arguments in {
        "sampling_locations": (value, shapes, None, loc.cpu(), weights),
        "attention_weights": (value, shapes, None, loc, weights.cpu()),
        "value|sampling_locations": (value.cpu(), shapes, None, loc, weights),
        "spatial_shapes|value": (value.cpu(), torch.tensor(shapes).cuda(), None, loc.cpu(), weights.cpu()),
        "value must have as many rows": (value[:, 1:], shapes, None, loc, weights),
        "float16": (value, shapes, None, loc.half(), weights.half()),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            msda.ms_deform_attn(*arguments)


def test_compile() -> None:
    """One graph, dynamic number of queries, the same result."""

    def function(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return msda.ms_deform_attn_fused(value * 2, list(USUAL.shapes), None, reference, offsets, logits).relu()

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for queries in (300, 200):
        size = op.Size(USUAL.n, USUAL.shapes, USUAL.m, USUAL.d, queries, USUAL.k)
        tensors = [t.requires_grad_() for t in gpu(op.make_fused(size, torch.float32, 2))]
        outputs = [f(*tensors) for f in (compiled, function)]
        grads = [torch.autograd.grad(o.sum(), tensors) for o in outputs]
        op.assert_near(cpu([outputs[0].detach(), *grads[0]]), cpu([outputs[1].detach(), *grads[1]]))


@pytest.mark.parametrize("values", [0, 2])
def test_opcheck(values: int) -> None:
    size = op.Size(1, ((6, 5), (3, 2)), 2, 8, 5, 2)
    tensors = [t.requires_grad_() for t in gpu(op.make(size, torch.float32, values))]
    sizes = [n for pair in size.shapes for n in pair]
    name = "fused_forward" if values else "forward"
    torch.library.opcheck(getattr(torch.ops.ms_deform_attn, name), (tensors[0], sizes, None, None, *tensors[1:]))


def test_autocast() -> None:
    value, loc, weights = gpu(op.make_plain(USUAL, torch.float32))
    with torch.autocast("cuda", torch.bfloat16):
        output = msda.ms_deform_attn(value, list(USUAL.shapes), None, loc, weights)
    assert output.dtype == torch.bfloat16
    exact = msda.ms_deform_attn(value.bfloat16(), list(USUAL.shapes), None, loc, weights)
    assert torch.equal(output, exact)


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    """Offsets beyond 32 bits, in bytes and in elements."""
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    size = op.Size(1, ((100, 100),), 8, 64, 10, 4)
    copies = 2**31 // (size.rows * size.m * size.d) + 2
    value, loc, weights = op.make_plain(size, torch.float16)
    many = torch.zeros(copies, *value.shape[1:], dtype=torch.float16, device="cuda")
    many[-1] = value[0].cuda()
    loc, weights = (t.cuda().expand(copies, *t.shape[1:]).contiguous() for t in (loc, weights))
    many.requires_grad_()
    output = msda.ms_deform_attn(many, list(size.shapes), None, loc, weights)
    alone = msda.ms_deform_attn(value.cuda(), list(size.shapes), None, loc[:1], weights[:1])
    assert torch.equal(output[-1], alone[0]) and not output[:-1].any()
    (grad,) = torch.autograd.grad(output[-1].sum(), many)
    assert grad[-1].any() and not grad[:-1].any()
