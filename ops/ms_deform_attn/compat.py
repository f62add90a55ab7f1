"""Interfaces of other implementations of the operator, for code written for them.

    import ms_deform_attn.compat; ms_deform_attn.compat.install()

must run before that code is imported. Afterward ``import MultiScaleDeformableAttention`` (the original extension)
works, also under the names used by Mask2Former, DINO, Grounding DINO and others. mmcv's
``MultiScaleDeformableAttnFunction`` and detrex's ``MultiScaleDeformableAttention`` are in this module.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
from torch import Tensor, nn

from .functional import _deterministic, ms_deform_attn
from .library import use_kernel
from .module import MSDeformAttn

NAMES = ("MultiScaleDeformableAttention", "MSDA", "groundingdino._C")


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Forward of the original extension. ``im2col_step``, which divides the batch there, has no effect."""
    with torch.no_grad():
        return ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of the original extension: gradients of value, sampling_locations and attention_weights."""
    if use_kernel(value.device.type):
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.ms_deform_attn.backward(
            grad_output,
            value,
            [],
            spatial_shapes,
            level_start_index,
            sampling_locations,
            attention_weights,
            _deterministic(),
        )
        return grads
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (value, sampling_locations, attention_weights)]
        output = ms_deform_attn(leaves[0], spatial_shapes, level_start_index, leaves[1], leaves[2])
    return torch.autograd.grad(output, leaves, grad_output)  # type: ignore[return-value]


class MSDeformAttnFunction:
    """``MSDeformAttnFunction.apply`` of the original repository; mmcv uses another name."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        return ms_deform_attn(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
        )


MultiScaleDeformableAttnFunction = MSDeformAttnFunction


class MultiScaleDeformableAttention(MSDeformAttn):
    """detrex's and mmcv's module: residual connection, dropout and position embeddings around the attention.

    Parameter names are those of :class:`ms_deform_attn.MSDeformAttn`, so their checkpoints load.

    Args:
        embed_dim, num_heads, num_levels, num_points: as d_model, n_heads, n_levels and n_points there.
        img2col_step: has no effect.
        dropout: probability of dropout on the output, before the residual sum.
        batch_first: if True, tensors are (N, Q, C) instead of (Q, N, C).
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        img2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        **unused: Any,
    ) -> None:
        super().__init__(embed_dim, num_levels, num_heads, num_points)
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        self.batch_first = batch_first
        self.dropout = nn.Dropout(dropout)

    def forward(  # type: ignore[override]  # arguments of the original, parameters of MSDeformAttn
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """Takes query (Q, N, C) or (N, Q, C), value (S, N, C) or (N, S, C), key_padding_mask (N, S), True on padding,
        and reference_points (N, Q, L, 2 or 4), like the original. Returns the shape of query."""
        if reference_points is None or spatial_shapes is None:
            raise ValueError("MultiScaleDeformableAttention: reference_points and spatial_shapes are required")
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        output = super().forward(query, reference_points, value, spatial_shapes, level_start_index, key_padding_mask)
        result: Tensor = self.dropout(output if self.batch_first else output.transpose(0, 1)) + identity
        return result


def install(*names: str) -> None:
    """Makes ``import MultiScaleDeformableAttention`` import this module's functions, for the rest of the process.

    Args:
        names: further names of the extension, such as ``"mypackage._C"``, in addition to `NAMES`.

    Raises:
        ImportError: If another implementation has been imported under that name.
    """
    for name in (*NAMES, *names):
        present = sys.modules.get(name)
        if present is not None and not getattr(present, "__ms_deform_attn__", False):
            raise ImportError(
                f"ms_deform_attn.compat: {name} is already imported, from {present!r}; call install() first"
            )
        module = types.ModuleType(name, "The original extension's interface, provided by ms_deform_attn.compat.")
        module.__ms_deform_attn__ = True  # type: ignore[attr-defined]
        module.ms_deform_attn_forward = ms_deform_attn_forward  # type: ignore[attr-defined]
        module.ms_deform_attn_backward = ms_deform_attn_backward  # type: ignore[attr-defined]
        sys.modules[name] = module
