"""The attention module of Deformable DETR."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .checks import HALF
from .functional import ms_deform_attn_fused, uses_autocast
from .layers import Linear
from .levels import Sizes


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections (arXiv 2010.04159, section 4.1 and equation 3).

    Args:
        d_model: channels C of queries and input.
        n_levels: feature levels L.
        n_heads: attention heads M; must divide d_model.
        n_points: sampling points K of each head on each level.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        for name, number in (
            ("d_model", d_model),
            ("n_levels", n_levels),
            ("n_heads", n_heads),
            ("n_points", n_points),
        ):
            if number < 1:
                raise ValueError(f"MSDeformAttn: {name} must be at least 1, got {number}")
        if d_model % n_heads:
            raise ValueError(f"MSDeformAttn: d_model must be a multiple of n_heads, got {d_model} and {n_heads}")
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.sampling_offsets = Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = Linear(d_model, d_model)
        self.output_proj = Linear(d_model, d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initializes the parameters as in the paper (section A.4).

        Attention is uniform. The k-th point of head m lies in direction 2 pi m / M, at distance k in max(|x|, |y|).
        """
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.n_heads, dtype=torch.float64) * (2 * math.pi / self.n_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # (M, 2)
        distance = torch.arange(1, self.n_points + 1, dtype=torch.float64)  # (K,)
        bias = direction[:, None, None, :] * distance[None, None, :, None]  # (M, 1, K, 2)
        self.sampling_offsets.bias.copy_(bias.expand(-1, self.n_levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def extra_repr(self) -> str:
        return f"{self.d_model}, n_levels={self.n_levels}, n_heads={self.n_heads}, n_points={self.n_points}"

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor | Sizes,
        input_level_start_index: Tensor | Sequence[int] | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Computes the attention of queries to an input.

        Args:
            query: (N, Q, C).
            reference_points: (N, Q, L, 2) as (x, y), or (N, Q, L, 4) as (cx, cy, w, h), in [0, 1] of the padded
                image.
            input_flatten: (N, S, C), the levels flattened row by row and concatenated.
            input_spatial_shapes: L pairs (H, W), integers (preferred) or an (L, 2) int64 tensor.
            input_level_start_index: first row of each level in S; computed if None.
            input_padding_mask: (N, S) bool, True on padding, which counts as zero.

        Returns:
            (N, Q, C).

        Raises:
            ValueError: If query or input_flatten does not have d_model channels, input_spatial_shapes or
                reference_points n_levels levels, or reference_points 2 or 4 values.
            RuntimeError: If sizes disagree; the message names the argument.
        """
        kind = type(self).__name__
        for name, tensor in (("query", query), ("input_flatten", input_flatten)):
            if tensor.dim() != 3 or tensor.shape[-1] != self.d_model:
                raise ValueError(f"{kind}: {name} must be (N, *, {self.d_model}), got {tuple(tensor.shape)}")
        if reference_points.dim() != 4 or reference_points.shape[-1] not in (2, 4):
            raise ValueError(
                f"{kind}: reference_points must be (N, Q, {self.n_levels}, 2 or 4), got {tuple(reference_points.shape)}"
            )
        for name, levels in (
            ("input_spatial_shapes", len(input_spatial_shapes)),
            ("reference_points", reference_points.shape[2]),
        ):
            if levels != self.n_levels:
                raise ValueError(f"{kind}: {name} must have n_levels = {self.n_levels} levels, got {levels}")
        n, q, _ = query.shape
        m, levels, k = self.n_heads, self.n_levels, self.n_points
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        value = value.view(n, input_flatten.shape[1], m, self.d_model // m)
        offsets = self.sampling_offsets(query).view(n, q, m, levels, k, 2)
        logits = self.attention_weights(query).view(n, q, m, levels, k)
        # Under autocast the operator converts to float32. Rounding points to 16 bits first would move the samples.
        if not uses_autocast(query.device):
            dtype = torch.float32 if offsets.dtype in HALF else offsets.dtype
            reference_points, offsets, logits = (t.to(dtype) for t in (reference_points, offsets, logits))
        output = ms_deform_attn_fused(
            value, input_spatial_shapes, input_level_start_index, reference_points, offsets, logits
        )
        projected: Tensor = self.output_proj(output)
        return projected
