"""Operation counts of the operator, for FLOP counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def multiply_adds(n: int, q: int, m: int, d: int, levels: int, k: int) -> int:
    """Returns the multiply-adds of one forward call: N * Q * M * L * K samples of D channels.

    A sample takes four multiply-adds per channel (the corners, with attention folded into their weights). The cost of
    the corner weights does not depend on D and is not counted, as counters do not count activations.
    """
    return 4 * n * q * m * levels * k * d


def count_forward(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Handler for fvcore's ``FlopCountAnalysis.set_op_handle(name, handler)``; see :data:`HANDLERS`.

    fvcore counts a multiply-add as one FLOP, and passes the values of the operator's TorchScript node.
    """
    value = list(inputs[0].type().sizes())
    points = list(inputs[-1].type().sizes())  # weights or logits, (N, Q, M, L, K)
    return multiply_adds(points[0], points[1], points[2], value[3], points[3], points[4])


HANDLERS = {
    "ms_deform_attn::forward": count_forward,
    "ms_deform_attn::fused_forward": count_forward,
}
"""Operator name -> handler: ``FlopCountAnalysis(model, inputs).set_op_handle(**HANDLERS)``."""
