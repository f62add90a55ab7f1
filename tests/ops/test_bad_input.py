"""Invalid arguments raise an error that names the argument, its requirement and the given value, on every path."""

import ms_deform_attn as msda
import pytest
import torch
from ms_deform_attn.reference import ms_deform_attn_fused_reference
from op_helpers import Size, make_fused, make_plain
from torch._subclasses.fake_tensor import FakeTensorMode

SIZE = Size(2, ((6, 5), (3, 4)), 2, 8, 7, 3)
FUNCTIONS = {
    "kernel": (msda.ms_deform_attn, msda.ms_deform_attn_fused),
    "reference": (msda.ms_deform_attn_reference, ms_deform_attn_fused_reference),
}
# Name -> replacement of arguments and the message. Cases of sizes, types and devices also apply to fake tensors.
SHAPES = {
    "value rank": (lambda a: {"value": a["value"][0]}, "value must have 4 dimensions .*got 3"),
    "heads": (lambda a: {"value": a["value"][:, :, :1]}, "sampling_locations must have size 1 in dimension 2"),
    "no heads": (lambda a: {"value": a["value"][:, :, :0]}, "value must have at least one head"),
    "no channels": (lambda a: {"value": a["value"][..., :0]}, "value must have at least one head"),
    "value integer": (lambda a: {"value": a["value"].int()}, "value must be float32.*got"),
    "value double": (lambda a: {"value": a["value"].double()}, "sampling_locations must be .*float64 like value"),
    "batch": (lambda a: {"loc": a["loc"][:1]}, "sampling_locations must have size 2 in dimension 0"),
    "loc rank": (lambda a: {"loc": a["loc"][..., 0]}, "sampling_locations must have 6 dimensions"),
    "loc levels": (lambda a: {"loc": a["loc"][:, :, :, :1]}, "sampling_locations must have size 2 in dimension 3"),
    "loc pairs": (lambda a: {"loc": a["loc"].repeat(1, 1, 1, 1, 1, 2)}, "sampling_locations .* size 2 in dimension 5"),
    "no points": (lambda a: {"loc": a["loc"][..., :0, :], "weights": a["weights"][..., :0]}, "at least one point"),
    "loc bfloat16": (lambda a: {"loc": a["loc"].bfloat16()}, "sampling_locations .*float32 like value.*bfloat16"),
    "weights shape": (
        lambda a: {"weights": a["weights"][..., :2]},
        "attention_weights must have size 3 in dimension 4",
    ),
    "weights rank": (lambda a: {"weights": a["weights"][..., None]}, "attention_weights must have 5 dimensions"),
    "weights type": (lambda a: {"weights": a["weights"].double()}, "attention_weights .*float32 like sampling_loc"),
    "device": (
        lambda a: {"loc": a["loc"].to("meta")},
        "sampling_locations must be on the device of value, cpu, got meta",
    ),
    "triples": (lambda a: {"shapes": [(6, 5, 1), (3, 4, 1)]}, "spatial_shapes must contain pairs"),
    "no levels": (lambda a: {"shapes": []}, "spatial_shapes must have 1 to 64 levels, got 0"),
}
LEVELS = {
    "value rows": (lambda a: {"value": a["value"][:, 1:]}, "value must have as many rows.* 42, got 41"),
    "negative": (lambda a: {"shapes": [(-6, -5), (3, 4)]}, r"must be positive, got \(-6, -5\) for level 0"),
    "empty level": (
        lambda a: {"shapes": [(6, 7), (0, 4)]},
        r"spatial_shapes must be positive, got \(0, 4\) for level 1",
    ),
    "sum": (lambda a: {"shapes": [(6, 5), (3, 5)]}, "value must have as many rows.* 45, got 42"),
    "shapes int32": (lambda a: {"shapes": torch.tensor(a["shapes"]).int()}, "spatial_shapes must be int64"),
    "shapes rank": (lambda a: {"shapes": torch.tensor(a["shapes"]).flatten()}, "spatial_shapes must have 2 dimensions"),
    "start": (lambda a: {"start": [0, 29]}, "level_start_index must be 30 for level 1 according to spatial_shapes"),
    "start tensor": (lambda a: {"start": torch.tensor([1, 30])}, "level_start_index must be 0 for level 0"),
    "start length": (lambda a: {"start": [0]}, r"level_start_index must have shape \(2,\)"),
    "start type": (lambda a: {"start": torch.tensor([0.0, 30.0])}, "level_start_index must be int64"),
    "overflow": (lambda a: {"shapes": [(2**40, 2**40), (3, 4)]}, "as many rows"),
}
REFERENCE_POINTS = {
    "values": (lambda r: r[..., :1], "reference_points must have 2 or 4 values"),
    "queries": (lambda r: r[:, :3], "reference_points must have size 7 in dimension 1"),
    "rank": (lambda r: r[0], "reference_points must have 4 dimensions"),
    "type": (lambda r: r.double(), "reference_points must be .*float32 like sampling_offsets"),
}


def valid_arguments() -> dict[str, object]:
    value, loc, weights = make_plain(SIZE, torch.float32)
    return {"value": value, "shapes": list(SIZE.shapes), "start": [0, 30], "loc": loc, "weights": weights}


@pytest.mark.parametrize("path", FUNCTIONS)
@pytest.mark.parametrize("name", SHAPES | LEVELS)
def test_plain(name: str, path: str) -> None:
    change, message = (SHAPES | LEVELS)[name]
    arguments = valid_arguments()
    FUNCTIONS[path][0](*arguments.values())
    with pytest.raises(RuntimeError, match=message):
        FUNCTIONS[path][0](*(arguments | change(arguments)).values())


@pytest.mark.parametrize("path", FUNCTIONS)
@pytest.mark.parametrize("name", REFERENCE_POINTS)
def test_reference_points(name: str, path: str) -> None:
    change, message = REFERENCE_POINTS[name]
    value, reference, offsets, logits = make_fused(SIZE, torch.float32, 2)
    with pytest.raises(RuntimeError, match=message):
        FUNCTIONS[path][1](value, SIZE.shapes, None, change(reference), offsets, logits)


@pytest.mark.parametrize("name", SHAPES)
def test_fake_tensors(name: str) -> None:
    change, message = SHAPES[name]
    with FakeTensorMode():
        arguments = valid_arguments()
        with pytest.raises(RuntimeError, match=message):
            msda.ms_deform_attn(*(arguments | change(arguments)).values())


def test_compiled_functions_raise_while_tracing() -> None:
    arguments = valid_arguments() | {"loc": make_plain(SIZE, torch.float32)[1][:1]}
    compiled = torch.compile(msda.ms_deform_attn, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="sampling_locations must have size 2 in dimension 0"):
        compiled(*arguments.values())


def test_operators_check_arguments_without_python() -> None:
    """Exported programs call the operators directly."""
    value, loc, weights = make_plain(SIZE, torch.float32)
    forward = torch.ops.ms_deform_attn.forward
    for arguments in (
        (value[:, 1:], [6, 5, 3, 4], None, None, loc, weights),
        (value, [6, 5, 3], None, None, loc, weights),
        (value, [6, 5, 3, -4], None, None, loc, weights),
        (value, [2**40, 2**40, 3, 4], None, None, loc, weights),
        (value, [6, 5, 3, 4], None, torch.tensor([0, 29]), loc, weights),
        (value, [6, 5, 3, 4], None, None, loc[..., :1, :], weights),
        (value, [6, 5, 3, 4], None, None, loc, weights[:1]),
        (value.int(), [6, 5, 3, 4], None, None, loc, weights),
        (value, [6, 5, 3, 4], None, None, loc, weights.double()),
    ):
        with pytest.raises(RuntimeError, match="ms_deform_attn: "):
            forward(*arguments)


def test_module_arguments() -> None:
    with pytest.raises(ValueError, match="multiple of n_heads, got 30 and 8"):
        msda.MSDeformAttn(30, 4, 8, 4)
    with pytest.raises(ValueError, match="n_points must be at least 1, got 0"):
        msda.MSDeformAttn(32, 4, 8, 0)
    module = msda.MSDeformAttn(16, 2, 2, 3)
    tokens, points = torch.randn(1, 42, 16), torch.rand(1, 42, 2, 2)
    with pytest.raises(ValueError, match=r"query must be \(N, \*, 16\), got \(1, 42, 15\)"):
        module(tokens[..., 1:], points, tokens, SIZE.shapes)
    with pytest.raises(ValueError, match="reference_points must be"):
        module(tokens, points[..., :1], tokens, SIZE.shapes)


def test_grad_output_is_checked() -> None:
    value, loc, weights = make_plain(SIZE, torch.float32)
    for grad in (torch.randn(2, 7, 15), torch.randn(2, 7, 16).double(), torch.randn(2, 7 * 16)):
        with pytest.raises(RuntimeError, match="grad_output must"):
            torch.ops.ms_deform_attn.backward(grad, value, [6, 5, 3, 4], None, None, loc, weights, False)
