"""The CUDA kernels, compiled for the host with a block's threads as coroutines, against the float64 reference.

Covers the kernels' source: indexing, shuffles, barriers, shared memory, launch sizes. test_cuda.py covers what needs a
GPU: generated code, atomic additions, streams, graphs.
"""

from dataclasses import replace

import op_helpers as op
import pytest
import torch
from emulation_helpers import Emulation, compiler, guarded
from torch import Tensor

SHAPES4 = ((6, 7), (3, 4), (2, 2), (1, 1))
SIZES = [
    op.Size(2, ((7, 5), (3, 4)), 3, 5, 11, 3),
    op.Size(1, SHAPES4, 8, 32, 9, 4),  # the usual configuration
    op.Size(1, ((5, 4),), 3, 1, 6, 3),  # one lane
    op.Size(2, ((5, 4),), 2, 8, 3, 1),  # two lanes in float32, one in 16 bits
    op.Size(1, ((9, 2), (1, 1), (2, 2), (3, 3), (1, 7)), 2, 33, 1, 3),  # more channels than lanes
    op.Size(1, ((4, 5), (2, 3)), 2, 64, 5, 4),
    op.Size(1, ((4, 5),), 2, 128, 3, 4),
    op.Size(1, ((4, 5),), 1, 160, 2, 3),  # several steps of channels
    op.Size(1, ((20, 9), (3, 3)), 2, 8, 70, 9),  # several tiles and lists in the deterministic kernel
    op.Size(0, ((4, 3),), 2, 8, 5, 2),
    op.Size(2, ((4, 3),), 2, 8, 0, 2),
]


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    if compiler() is None:
        pytest.skip("needs a C++ compiler and the source tree")
    return Emulation(tmp_path_factory.mktemp("emulation"))


def inputs(
    size: op.Size, dtype: torch.dtype, values: int, points: torch.dtype | None = None
) -> tuple[list[Tensor], Tensor]:
    """Returns inputs and a gradient, each between ranges of NaN."""
    return [guarded(t) for t in op.make(size, dtype, values, points)], guarded(op.grad_like_output(size, dtype))


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("values", [0, 2, 4], ids=["plain", "fused2", "fused4"])
@pytest.mark.parametrize(("dtype", "points"), op.TYPES, ids=str)
def test_kernels(
    emulation: Emulation, dtype: torch.dtype, points: torch.dtype, values: int, deterministic: bool
) -> None:
    for number, size in enumerate(SIZES):
        tensors, grad = inputs(size, dtype, values, points)
        got = emulation.run(size, tensors, grad, deterministic=deterministic, shapes_on_device=number % 2 == 1)
        op.assert_near(got, op.reference_of(size, tensors, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_vectors_and_single_channels_agree(emulation: Emulation, dtype: torch.dtype) -> None:
    """An unaligned value uses the path of single channels, with the same sums."""
    size = SIZES[5]
    tensors, grad = inputs(size, dtype, 0)
    shifted = [guarded(tensors[0], shift=1), *tensors[1:]]
    assert emulation.plan(size, dtype).vector * dtype.itemsize == 16 and shifted[0].data_ptr() % 16
    aligned = emulation.run(size, tensors, grad, deterministic=True)
    single = emulation.run(size, shifted, grad, deterministic=True)
    assert torch.equal(aligned[0], single[0]) and torch.equal(aligned[1], single[1])
    op.assert_near(single, op.reference_of(size, tensors, grad))


def test_strides(emulation: Emulation) -> None:
    size = op.Size(2, ((4, 5), (2, 3)), 4, 32, 5, 2)
    tensors, grad = inputs(size, torch.float32, 0)
    dense = emulation.run(size, tensors, grad, deterministic=True)
    expanded = tensors[0][:1].expand(2, -1, -1, -1)
    heads_first, _, part = op.unusual_strides(tensors[0])
    for strided in (heads_first, part):
        got = emulation.run(size, [strided, *tensors[1:]], grad, deterministic=True)
        op.assert_equal(got[:2], dense[:2])
        op.assert_near(got, op.reference_of(size, tensors, grad))
    same = [expanded, *tensors[1:]]
    op.assert_near(emulation.run(size, same, grad), op.reference_of(size, same, grad))


@pytest.mark.parametrize("values", [0, 4], ids=["plain", "fused"])
def test_order_of_threads_does_not_matter(emulation: Emulation, values: int) -> None:
    """The order of threads and the number of blocks do not change results, so no barrier is missing."""
    for size in (SIZES[1], SIZES[4], SIZES[8]):
        tensors, grad = inputs(size, torch.float32, values)
        rising = emulation.run(size, tensors, grad, deterministic=True)
        for options in ({"falling": True}, {"max_blocks": 1}, {"max_blocks": 10**6}):
            other = emulation.run(size, tensors, grad, deterministic=True, **options)  # type: ignore[arg-type]
            op.assert_equal(rising, other)


def test_unusual_locations(emulation: Emulation) -> None:
    """Pixel centers and edges; non-finite and huge locations contribute nothing."""
    size = op.Size(1, ((8, 4), (2, 16)), 2, 32, 40, 4)
    tensors, grad = inputs(size, torch.float32, 0)
    loc = tensors[1]
    op.move_to_half_pixels(loc, size)
    op.assert_near(emulation.run(size, tensors, grad), op.reference_of(size, tensors, grad))
    for i, bad in enumerate((*op.NON_FINITE, 1e9)):
        loc[:, 3 * i : 3 * i + 3, i % 2, i % 2, i % 4, i % 2] = bad
    for deterministic in (False, True):
        got = emulation.run(size, tensors, grad, deterministic=deterministic)
        assert all(t.isfinite().all() for t in got)
        op.assert_near(got, op.reference_of(size, tensors, grad))


def test_non_finite_values_affect_only_points_that_sample_them(emulation: Emulation) -> None:
    size = op.Size(1, ((9, 8), (6, 5)), 2, 32, 30, 2)
    for poison in (float("nan"), float("inf")):
        tensors, grad = inputs(size, torch.float32, 0)
        tensors[0][:, 0] = poison
        tensors[0][:, 72 + 29] = poison
        for deterministic in (False, True):
            op.assert_near(
                emulation.run(size, tensors, grad, deterministic=deterministic), op.reference_of(size, tensors, grad)
            )


def test_many_points(emulation: Emulation) -> None:
    """More points than fit into shared memory: the fused backward stores gradients in device memory."""
    size = op.Size(1, ((5, 4), (2, 2)), 2, 8, 2, 700)
    assert not emulation.plan(size, torch.float32, fused=True, backward=True).stash_in_shared
    tensors, grad = inputs(size, torch.float32, 2)
    got = emulation.run(size, tensors, grad)
    assert f"allocate {3 * 2 * 2 * 1400 * 4}\n" in emulation.report
    op.assert_near(got, op.reference_of(size, tensors, grad))


def test_reference_gradient_can_be_omitted(emulation: Emulation) -> None:
    tensors, grad = inputs(SIZES[1], torch.float32, 2)
    both = [emulation.run(SIZES[1], tensors, grad, want_reference=w) for w in (True, False)]
    assert all(torch.equal(both[0][i], both[1][i]) for i in (0, 1, 3, 4))


def test_wrong_shapes_in_device_memory_are_an_error(emulation: Emulation) -> None:
    size = op.Size(1, ((4, 5), (2, 3)), 2, 8, 3, 2)
    tensors, grad = inputs(size, torch.float32, 0)
    bad = [((4, 5), (2, 2)), ((4, 5), (3, 3)), ((4, -5), (2, 3)), ((0, 5), (2, 13)), ((1 << 40, 1 << 40), (1, 1))]
    for wrong in bad:
        with pytest.raises(RuntimeError, match="spatial_shapes"):
            emulation.run(size, tensors, grad, shapes_on_device=True, shapes=wrong)


def test_empty_calls_launch_nothing(emulation: Emulation) -> None:
    for size in SIZES[-2:]:
        tensors, grad = inputs(size, torch.float32, 2)
        got = emulation.run(size, tensors, grad)
        assert emulation.report == "" and (got[1] == 0).all()


def test_plan(emulation: Emulation) -> None:
    """Launch sizes for the benchmark's sizes and at the limits."""
    enc = op.Size(1, ((100, 134), (50, 67), (25, 34), (13, 17)), 8, 32, 17821, 4)
    plan = emulation.plan(enc, torch.float32)
    assert (plan.vector, plan.lanes, plan.block, plan.queries_inner) == (4, 8, 256, True)
    assert plan.blocks == -(-enc.q * enc.m // 32)
    assert emulation.plan(enc, torch.bfloat16).lanes == 4 and emulation.plan(enc, torch.bfloat16).vector == 8
    assert emulation.plan(enc, torch.float64).lanes == 16
    assert emulation.plan(enc, torch.float32, aligned=False).vector == 1
    assert emulation.plan(replace(enc, q=300), torch.float32).block == 64  # 300 blocks instead of 75
    assert not emulation.plan(replace(enc, shapes=((9, 9),), k=1), torch.float32).queries_inner
    assert emulation.plan(enc, torch.float32, fused=True, backward=True).stash_in_shared
    assert emulation.plan(replace(enc, n=10**7), torch.float32).blocks == 2**31 - 1
    assert emulation.plan(replace(enc, q=0), torch.float32).blocks == 0
    for k in (1, 4, 30, 200, 5000):
        for d in (1, 5, 32, 33, 256):
            plan = emulation.plan(replace(enc, k=k, d=d), torch.float64, fused=True, backward=True, aligned=d % 2 == 0)
            per_thread = 8 * 8 + 16 + (3 * 8 * 4 * k / plan.lanes if plan.stash_in_shared else 0)
            assert plan.block >= 32 and 4 * 24 + plan.block * per_thread <= 48 * 1024
