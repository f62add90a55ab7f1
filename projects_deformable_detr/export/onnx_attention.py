"""Translations of the deformable attention operator for PyTorch's ONNX exporter.

Pixel indices outside of a level are clamped, and their weights are zero.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from onnxscript import opset18

from ..errors import check_choice

op: Any = opset18  # its methods are annotated for eager tensors

SAMPLINGS = ("gather", "gridsample")
_FLOAT, _INT64 = 1, 7  # onnx.TensorProto's types


def translation_table(sampling: str = "gather") -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the ``custom_translation_table`` of ``torch.onnx.export`` for models with `MSDeformAttn`.

    Args:
        sampling: ``"gather"`` or ``"gridsample"``. TensorRT 10.14 to 11.1 miscompiles ``"gridsample"``.
    """
    check_choice("sampling", sampling, SAMPLINGS)
    sample = _gather if sampling == "gather" else _grid_sample

    # Tensors are values of the ONNX graph; sizes are integers or values of the graph.
    def attention(
        value: Any, sizes: Sequence[Any], shapes: Any, start: Any, reference: Any, offsets: Any, logits: Any
    ) -> Any:
        _, _, heads, levels, points = logits.shape
        wide = [op.Reshape(size, op.Constant(value_ints=[1])) for size in sizes]
        extents = op.Concat(*(wide[index ^ 1] for index in range(2 * levels)), axis=0)  # W, H of all levels
        extents = op.Reshape(op.Cast(extents, to=_FLOAT), op.Constant(value_ints=[levels, 1, 2]))
        is_box = reference.shape[3] == 4
        reference = op.Unsqueeze(reference, op.Constant(value_ints=[2, 4]))  # (N, Q, 1, L, 1, 2 or 4)
        if is_box:
            center, extent = (_slice(reference, begin, begin + 2, -1) for begin in (0, 2))
            pixels = (center + offsets * extent * op.Constant(value_float=0.5 / points)) * extents
        else:
            pixels = reference * extents + offsets
        pixels = pixels - op.Constant(value_float=0.5)  # (N, Q, M, L, K, 2)
        weights = op.Reshape(logits, op.Constant(value_ints=[0, 0, heads, levels * points]))
        weights = op.Reshape(op.Softmax(weights, axis=-1), op.Constant(value_ints=[0, 0, heads, levels, points]))
        areas = [op.Mul(height, width) for height, width in zip(wide[::2], wide[1::2], strict=True)]
        dims = heads, levels, points, value.shape[3]
        output = sample(_Points(value, wide, areas, extents, pixels, weights, dims))  # (N, Q, M, D)
        return op.Reshape(output, op.Constant(value_ints=[0, 0, heads * value.shape[3]]))

    return {torch.ops.ms_deform_attn.fused_forward.default: attention}


class _Points(NamedTuple):
    """Sampling points of an attention; tensors are values of the ONNX graph.

    Attributes:
        value: (N, S, M, D).
        sizes: H and W of each level, (1,) each.
        areas: number of rows of each level, (1,) each.
        extents: W and H of each level, (L, 1, 2) float.
        pixels: x and y in pixels of the level, (N, Q, M, L, K, 2).
        weights: (N, Q, M, L, K), after the softmax.
        dims: M, L, K, D.
    """

    value: Any
    sizes: Sequence[Any]
    areas: Sequence[Any]
    extents: Any
    pixels: Any
    weights: Any
    dims: tuple[int, int, int, int]


def _gather(points: _Points) -> Any:
    """Gathers rows of D values at the four pixels around each sampling point."""
    value, _, areas, extents, pixels, weights, (heads, levels, _, channels) = points
    shape = op.Shape(value)
    length = _slice(shape, 1, 2, 0)
    images = op.Range(op.Constant(value_int=0), op.Squeeze(_slice(shape, 0, 1, 0)), op.Constant(value_int=1))
    first = op.Concat(op.Constant(value_ints=[0]), *areas[:-1], axis=0) if levels > 1 else op.Constant(value_ints=[0])
    first = op.CumSum(first, op.Constant(value_int=0))
    offset = op.Reshape(first, op.Constant(value_ints=[levels, 1])) + op.Reshape(
        images * length, op.Constant(value_ints=[-1, 1, 1, 1, 1])
    )  # (N, 1, 1, L, 1), the first row of each level of each image
    head = op.Constant(value=_int_tensor(range(heads), (heads, 1, 1)))
    table = op.Reshape(value, op.Constant(value_ints=[-1, channels]))
    near = op.Floor(pixels)
    far_part = pixels - near
    one, zero = op.Constant(value_float=1.0), op.Constant(value_float=0.0)
    corners = {0: (near, one - far_part), 1: (near + one, far_part)}
    columns: list[Any] = []
    rows: list[Any] = []
    for corner, part in corners.values():
        clamped = op.Min(op.Max(corner, zero), extents - one)
        part = op.Where(op.Equal(clamped, corner), part, zero)
        for axis, results in enumerate((columns, rows)):
            pick = op.Constant(value_int=axis)
            results.append((op.Cast(op.Gather(clamped, pick, axis=-1), to=_INT64), op.Gather(part, pick, axis=-1)))
    width = op.Cast(_slice(extents, 0, 1, -1), to=_INT64)
    width = op.Reshape(width, op.Constant(value_ints=[levels, 1]))
    total: Any = None
    for row, row_part in rows:
        for column, column_part in columns:
            index = (offset + row * width + column) * op.Constant(value_int=heads) + head  # (N, Q, M, L, K)
            scale = op.CastLike(weights * row_part * column_part, value)
            for level in range(levels):  # one level at a time to limit memory
                picked, factor = (_slice(tensor, level, level + 1, 3) for tensor in (index, scale))
                samples = op.Gather(table, op.Squeeze(picked, op.Constant(value_ints=[3])), axis=0)
                summed = op.MatMul(factor, samples)  # (N, Q, M, 1, K) x (N, Q, M, K, D)
                total = summed if total is None else total + summed
    return op.Squeeze(total, op.Constant(value_ints=[3]))


def _grid_sample(points: _Points) -> Any:
    """Samples with GridSample, where each head of each image is a batch element."""
    value, sizes, areas, extents, pixels, weights, (heads, _, count, channels) = points
    one = op.Constant(value_float=1.0)
    grid = (pixels + pixels + one) / extents - one
    shape = op.Shape(weights)
    queries = _slice(shape, 1, 2, 0)
    minus_one, per_head = op.Constant(value_ints=[-1]), op.Constant(value_ints=[channels])
    folded = op.Concat(minus_one, queries, op.Constant(value_ints=[count]), axis=0)
    begin: Any = op.Constant(value_ints=[0])
    total: Any = None
    for level, area in enumerate(areas):
        end = op.Add(begin, area)
        rows = op.Transpose(op.Slice(value, begin, end, op.Constant(value_ints=[1])), perm=[0, 2, 3, 1])
        maps = op.Reshape(rows, op.Concat(minus_one, per_head, *sizes[2 * level : 2 * level + 2], axis=0))
        pick = op.Constant(value_int=level)
        points_of_level = op.Transpose(op.Gather(grid, pick, axis=3), perm=[0, 2, 1, 3, 4])
        points_of_level = op.Reshape(points_of_level, op.Concat(folded, op.Constant(value_ints=[2]), axis=0))
        factor = op.Reshape(op.Transpose(op.Gather(weights, pick, axis=3), perm=[0, 2, 1, 3]), folded)
        factor = op.CastLike(op.Unsqueeze(factor, op.Constant(value_ints=[1])), value)
        samples = op.GridSample(maps, op.CastLike(points_of_level, value), mode="bilinear", padding_mode="zeros")
        summed = op.ReduceSum(samples * factor, op.Constant(value_ints=[3]), keepdims=0)  # (N * M, D, Q)
        total = summed if total is None else total + summed
        begin = end
    unfolded = op.Concat(minus_one, op.Constant(value_ints=[heads, channels]), queries, axis=0)
    return op.Transpose(op.Reshape(total, unfolded), perm=[0, 3, 1, 2])


def _slice(tensor: Any, begin: int, end: int, axis: int) -> Any:
    bounds = (op.Constant(value_ints=[number]) for number in (begin, end, axis))
    return op.Slice(tensor, *bounds)


def _int_tensor(values: Sequence[int], shape: tuple[int, ...]) -> Any:
    from onnx import helper

    return helper.make_tensor("", _INT64, shape, list(values))
