"""Multi-head attention whose training on the CPU needs little memory and time despite dropout."""

from collections.abc import Iterator
from typing import Any

import torch
from ms_deform_attn.layers import compiled_dropout_p, draw_seed, drop_, dropout_scale, linear
from torch import Tensor, nn

_TILE = 2**20  # attention weights that are computed at once on the CPU


class MultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` of tensors (N, S, C), without attention weights in its output.

    On the CPU, PyTorch's fused attention has no dropout, so that training would store the attention weights of all
    heads and a mask. Here, heads are computed one after the other, and again in the backward pass.

    Args:
        d_model: C.
        num_heads: number of heads.
        dropout: dropout probability of attention weights.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__(d_model, num_heads, dropout=dropout, batch_first=True)

    def forward(  # type: ignore[override]  # fewer arguments
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        """Maps query (N, Q, C), key and value (N, S, C) to (N, Q, C); the mask (N, S) is True for ignored keys."""
        p = compiled_dropout_p(query, self.dropout, self.training)
        if not p or (key_padding_mask is not None and key_padding_mask.dtype != torch.bool):
            return super().forward(query, key, value, key_padding_mask, need_weights=False)[0]
        assert self.in_proj_weight is not None and self.in_proj_bias is not None
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        heads = (
            linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).flatten(0, 1)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None
        if key_padding_mask is not None:
            mask = key_padding_mask.repeat_interleave(self.num_heads, 0)[:, None]
        output: Tensor = _Attention.apply(*heads, mask, p, draw_seed())
        output = output.unflatten(0, (-1, self.num_heads)).transpose(1, 2).flatten(2)
        return linear(output, self.out_proj.weight, self.out_proj.bias)


class _Attention(torch.autograd.Function):
    """Attention of query (B, Q, D), key and value (B, S, D) for B heads, with dropout of its weights."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, seed: int) -> Tensor:
        output = torch.empty_like(query)
        for index, rows in enumerate(_tiles(query, key)):
            weights = drop_(_attention_weights(query, key, mask, rows), p, seed + index)
            torch.bmm(weights, value[rows], out=output[rows])
        return output.mul_(dropout_scale(p))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        query, key, value, mask, ctx.p, ctx.seed = inputs
        ctx.save_for_backward(query, key, value, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("MultiheadAttention: second derivatives are not supported on the CPU with dropout")
        query, key, value, mask = ctx.saved_tensors
        grads = tuple(torch.empty_like(x) for x in (query, key, value))
        grad = grad * dropout_scale(ctx.p)
        with torch.autocast("cpu", enabled=False):
            for index, rows in enumerate(_tiles(query, key)):
                weights = _attention_weights(query, key, mask, rows)
                grad_weights = drop_(torch.bmm(grad[rows], value[rows].mT), ctx.p, ctx.seed + index)
                grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                torch.bmm(grad_scores, key[rows], out=grads[0][rows]).mul_(query.shape[-1] ** -0.5)
                torch.bmm(grad_scores.mT, query[rows] * query.shape[-1] ** -0.5, out=grads[1][rows])
                torch.bmm(drop_(weights, ctx.p, ctx.seed + index).mT, grad[rows], out=grads[2][rows])
        return *grads, None, None, None


def _tiles(query: Tensor, key: Tensor) -> Iterator[slice]:
    step = max(1, _TILE // max(1, query.shape[1] * key.shape[1]))
    return (slice(first, first + step) for first in range(0, len(query), step))


def _attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, rows: slice) -> Tensor:
    scores = torch.bmm(query[rows] * query.shape[-1] ** -0.5, key[rows].mT)
    if mask is None:
        return scores.softmax(-1)
    # Without keys, all weights are zero, as in PyTorch's attention.
    weights = scores.masked_fill_(mask[rows], torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill_(mask[rows], 0.0)
