"""Integration with PyTorch: opcheck, compile, export, autocast, checkpointing, functional transforms."""

import os
import subprocess
import sys
from pathlib import Path

import ms_deform_attn as msda
import pytest
import torch
from op_helpers import DTYPES, Size, assert_equal, grad_like_output, make, make_fused, make_plain
from torch.utils.checkpoint import checkpoint

SIZE = Size(2, ((6, 5), (3, 4)), 2, 8, 7, 3)
IN_PLACE = Size(1, ((20, 20),), 2, 32, 2, 2)
FLAT = [6, 5, 3, 4]
OPS = torch.ops.ms_deform_attn


def flat(size: Size) -> list[int]:
    return [x for pair in size.shapes for x in pair]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [SIZE, IN_PLACE], ids=["copied", "in place"])
def test_opcheck(size: Size, dtype: torch.dtype) -> None:
    low = {"atol": 1e-2, "rtol": 1e-1} if dtype.itemsize == 2 else {}
    value, loc, weights = (t.requires_grad_() for t in make_plain(size, dtype))
    torch.library.opcheck(OPS.forward.default, (value, flat(size), None, None, loc, weights), **low)
    shapes, start = torch.tensor(size.shapes), torch.tensor([0, 30][: len(size.shapes)])
    torch.library.opcheck(OPS.forward.default, (value, [], shapes, start, loc, weights), **low)
    fused = [t.requires_grad_() for t in make_fused(size, dtype, 4)]
    torch.library.opcheck(OPS.fused_forward.default, (fused[0], flat(size), None, None, *fused[1:]), **low)


def test_opcheck_of_backward() -> None:
    value, loc, weights = make_plain(SIZE, torch.float32)
    grad = grad_like_output(SIZE, torch.float32)
    torch.library.opcheck(OPS.backward.default, (grad, value, FLAT, None, None, loc, weights, False))
    fused = make_fused(SIZE, torch.float32, 2)
    for wanted in (True, False):
        torch.library.opcheck(OPS.fused_backward.default, (grad, fused[0], FLAT, None, None, *fused[1:], wanted, False))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_has_no_graph_break(dynamic: bool) -> None:
    module = msda.MSDeformAttn(16, 2, 2, 3).eval()
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shapes in ([(6, 5), (3, 4)], [(7, 3), (4, 2)]):
        rows = sum(h * w for h, w in shapes)
        tokens = torch.randn(2, rows, 16, requires_grad=True)
        points = torch.rand(2, rows, 2, 2)
        torch.testing.assert_close(compiled(tokens, points, tokens, shapes), module(tokens, points, tokens, shapes))
        as_tensor = torch.tensor(shapes)
        got = compiled(tokens, points, tokens, as_tensor)
        torch.testing.assert_close(got, module(tokens, points, tokens, shapes))
        (grad,) = torch.autograd.grad(got.sum(), tokens)
        (wanted,) = torch.autograd.grad(module(tokens, points, tokens, shapes).sum(), tokens)
        torch.testing.assert_close(grad, wanted)


class FixedShapes(torch.nn.Module):
    """MSDeformAttn on two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = msda.MSDeformAttn(16, 2, 2, 3)

    def forward(self, query: torch.Tensor, points: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.attention(query, points, tokens, [(6, 5), (3, 4)])


def test_export() -> None:
    module = FixedShapes().eval()
    example = (torch.randn(1, 9, 16), torch.rand(1, 9, 2, 2), torch.randn(1, 42, 16))
    queries = torch.export.Dim("queries", min=2, max=1000)
    dims = {"query": {1: queries}, "points": {1: queries}, "tokens": None}
    program = torch.export.export(module, example, dynamic_shapes=dims)
    assert "ms_deform_attn.fused_forward" in str(program.graph)
    other = (torch.randn(1, 33, 16), torch.rand(1, 33, 2, 2), torch.randn(1, 42, 16))
    torch.testing.assert_close(program.module()(*other), module(*other))


@pytest.mark.slow
def test_inductor_and_aot_inductor(tmp_path) -> None:
    module = FixedShapes().eval()
    example = (torch.randn(1, 9, 16), torch.rand(1, 9, 2, 2), torch.randn(1, 42, 16))
    wanted = module(*example)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(*example), wanted)
    with torch.no_grad():
        program = torch.export.export(module, example)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(*example), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """value is cast to the autocast type, locations and weights to float32."""
    value, loc, weights = make_plain(SIZE, torch.float32)
    shapes = SIZE.shapes
    with torch.autocast("cpu", dtype):
        output = msda.ms_deform_attn(value, shapes, None, loc, weights)
        fused = msda.ms_deform_attn_fused(value, shapes, None, torch.rand(2, 7, 2, 2), loc, weights)
        module_output = msda.MSDeformAttn(16, 2, 2, 3)(
            torch.randn(2, 7, 16), torch.rand(2, 7, 2, 2), torch.randn(2, 42, 16), shapes
        )
    assert output.dtype == fused.dtype == module_output.dtype == dtype
    assert torch.equal(output, msda.ms_deform_attn(value.to(dtype), shapes, None, loc, weights))
    value, loc, weights = (t.double() for t in (value, loc, weights))
    with torch.autocast("cpu", dtype):
        assert msda.ms_deform_attn(value, shapes, None, loc, weights).dtype == torch.float64


def test_checkpoint_and_func_grad() -> None:
    tensors = [t.requires_grad_() for t in make_plain(SIZE, torch.float32)]

    def run(value, loc, weights):
        return msda.ms_deform_attn(value, SIZE.shapes, None, loc, weights).square().sum()

    wanted = torch.autograd.grad(run(*tensors), tensors)
    assert_equal(torch.autograd.grad(checkpoint(run, *tensors, use_reentrant=False), tensors), wanted)
    assert_equal(torch.func.grad(run, argnums=(0, 1, 2))(*[t.detach() for t in tensors]), wanted)


@pytest.mark.parametrize("fused", [False, True])
def test_double_backward_raises(fused: bool) -> None:
    tensors = [t.requires_grad_() for t in make(SIZE, torch.float64, 2 if fused else 0)]
    function = msda.ms_deform_attn_fused if fused else msda.ms_deform_attn
    output = function(tensors[0], SIZE.shapes, None, *tensors[1:])
    (grad,) = torch.autograd.grad(output.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="gradient of the gradient"):
        grad.sum().backward()


def test_forward_mode_raises() -> None:
    value, loc, weights = make_plain(SIZE, torch.float64)
    with pytest.raises((RuntimeError, NotImplementedError), match="forward"):
        torch.func.jvp(lambda v: msda.ms_deform_attn(v, SIZE.shapes, None, loc, weights), (value,), (value,))


def test_needs_no_gradient_no_graph() -> None:
    value, loc, weights = make_plain(SIZE, torch.float32)
    assert not msda.ms_deform_attn(value, SIZE.shapes, None, loc, weights).requires_grad


def test_flops_handler() -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    from ms_deform_attn.flops import HANDLERS, multiply_adds

    class Wrapper(torch.nn.Module):
        def forward(self, value, loc, weights):
            return msda.ms_deform_attn(value, SIZE.shapes, None, loc, weights)

    tensors = tuple(make_plain(SIZE, torch.float32))
    counter = fvcore.FlopCountAnalysis(Wrapper(), tensors).set_op_handle(**HANDLERS)
    assert counter.total() == multiply_adds(2, 7, 2, 8, 2, 3) == 4 * 2 * 7 * 2 * 2 * 3 * 8


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    """Compares with the reference in a new process."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command += [f"--confcutdir={here}", str(here / "test_against_reference.py"), "-k", "fused4 or non_finite"]
    path = os.pathsep.join([str(Path(msda.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"MS_DEFORM_ATTN_ISA": isa, "PYTHONPATH": path}, capture_output=True, text=True
    )
    if done.returncode and "support only" in done.stdout:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("as_tensor", [False, True])
def test_meta_device(as_tensor: bool) -> None:
    value, locations, weights = (t.to("meta").requires_grad_() for t in make_plain(SIZE, torch.float32))
    shapes = torch.tensor(SIZE.shapes) if as_tensor else SIZE.shapes
    output = msda.ms_deform_attn(value, shapes, None, locations, weights)
    assert output.is_meta and output.shape == (2, 7, 16)
    output.sum().backward()
    assert value.grad is not None and value.grad.shape == value.shape and locations.grad is not None


def test_reference_on_meta_needs_known_sizes() -> None:
    shapes = torch.tensor(SIZE.shapes, device="meta")
    arguments = [t.to("meta") for t in make_plain(SIZE, torch.float32)]
    with pytest.raises(RuntimeError, match="spatial_shapes must have values"):
        msda.ms_deform_attn_reference(arguments[0], shapes, None, *arguments[1:])
