"""Every wrong argument is an error that names it, what it was and what it must be; same in kernel and reference."""

import ms_deform_attn as msda
import pytest
import torch
from ms_deform_attn.reference import ms_deform_attn_fused_reference
from op_helpers import Size, make_fused, make_plain

SIZE = Size(2, ((6, 5), (3, 4)), 2, 8, 7, 3)
START = [0, 30]


def good() -> dict[str, object]:
    value, loc, weights = make_plain(SIZE, torch.float32)
    return {"value": value, "shapes": list(SIZE.shapes), "start": START, "loc": loc, "weights": weights}


CASES = {
    "value rank": (lambda a: a | {"value": a["value"][0]}, "value must have 4 dimensions .*got 3"),
    "value rows": (lambda a: a | {"value": a["value"][:, 1:]}, "value must have as many rows.* 42, got 41"),
    "value heads": (
        lambda a: a | {"value": a["value"][:, :, :1]},
        "sampling_locations must have size 1 in dimension 2",
    ),
    "no heads": (lambda a: a | {"value": a["value"][:, :, :0]}, "value must have at least one head"),
    "no channels": (lambda a: a | {"value": a["value"][..., :0]}, "value must have at least one head"),
    "value integer": (lambda a: a | {"value": a["value"].int()}, "value must be float32.*got"),
    "value double": (lambda a: a | {"value": a["value"].double()}, "sampling_locations must be .*float64 like value"),
    "batch": (lambda a: a | {"loc": a["loc"][:1]}, "sampling_locations must have size 2 in dimension 0"),
    "loc rank": (lambda a: a | {"loc": a["loc"][..., 0]}, "sampling_locations must have 6 dimensions"),
    "loc levels": (lambda a: a | {"loc": a["loc"][:, :, :, :1]}, "sampling_locations must have size 2 in dimension 3"),
    "loc pairs": (
        lambda a: a | {"loc": a["loc"].repeat(1, 1, 1, 1, 1, 2)},
        "sampling_locations must have size 2 in dimension 5",
    ),
    "no points": (lambda a: a | {"loc": a["loc"][..., :0, :], "weights": a["weights"][..., :0]}, "at least one point"),
    "loc bfloat16": (
        lambda a: a | {"loc": a["loc"].bfloat16()},
        "sampling_locations must be .*float32 like value.*bfloat16",
    ),
    "weights shape": (lambda a: a | {"weights": a["weights"][..., :2]}, "attention_weights must have"),
    "weights rank": (lambda a: a | {"weights": a["weights"][..., None]}, "attention_weights must have"),
    "weights type": (
        lambda a: a | {"weights": a["weights"].double()},
        "attention_weights must be .*float32 like sampling_loc",
    ),
    "meta": (
        lambda a: a | {"loc": a["loc"].to("meta")},
        "(sampling_locations must be on the device|[Mm]eta|[Tt]ensor)",
    ),
    "negative": (
        lambda a: a | {"shapes": [(-6, -5), (3, 4)]},
        r"spatial_shapes must be positive, got \(-6, -5\) for level 0",
    ),
    "empty level": (
        lambda a: a | {"shapes": [(6, 7), (0, 4)]},
        r"spatial_shapes must be positive, got \(0, 4\) for level 1",
    ),
    "sum": (lambda a: a | {"shapes": [(6, 5), (3, 5)]}, "value must have as many rows.* 45, got 42"),
    "triples": (lambda a: a | {"shapes": [(6, 5, 1), (3, 4, 1)]}, "spatial_shapes must hold pairs"),
    "no levels": (lambda a: a | {"shapes": []}, "spatial_shapes must have 1 to 64 levels, got 0"),
    "shapes int32": (lambda a: a | {"shapes": torch.tensor(a["shapes"]).int()}, "spatial_shapes must be int64"),
    "shapes rank": (lambda a: a | {"shapes": torch.tensor(a["shapes"]).flatten()}, "spatial_shapes must have"),
    "start": (lambda a: a | {"start": [0, 29]}, "level_start_index must be 30 for level 1 by spatial_shapes, got 29"),
    "start tensor": (lambda a: a | {"start": torch.tensor([1, 30])}, "level_start_index must be 0 for level 0"),
    "start length": (lambda a: a | {"start": [0]}, r"level_start_index must have shape \(2,\)"),
    "start type": (lambda a: a | {"start": torch.tensor([0.0, 30.0])}, "level_start_index must be int64"),
    "overflow": (lambda a: a | {"shapes": [(2**40, 2**40), (3, 4)]}, "(too many positions|as many rows)"),
}


@pytest.mark.parametrize("function", [msda.ms_deform_attn, msda.ms_deform_attn_reference], ids=["kernel", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_plain(name: str, function) -> None:
    change, message = CASES[name]
    a = good()
    function(a["value"], a["shapes"], a["start"], a["loc"], a["weights"])  # the good one passes
    a = change(a)
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        function(a["value"], a["shapes"], a["start"], a["loc"], a["weights"])


@pytest.mark.parametrize(
    "function", [msda.ms_deform_attn_fused, ms_deform_attn_fused_reference], ids=["kernel", "reference"]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[..., :1], "reference_points must have 2 or 4 values"),
        (lambda r: r[:, :3], "reference_points must have (size|shape)"),
        (lambda r: r[0], "reference_points must have"),
        (lambda r: r.double(), "reference_points must be .*float32 like sampling_offsets"),
    ],
)
def test_reference_points(function, change, message: str) -> None:
    value, reference, offsets, logits = make_fused(SIZE, torch.float32, 2)
    with pytest.raises(RuntimeError, match=message):
        function(value, SIZE.shapes, None, change(reference), offsets, logits)


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
