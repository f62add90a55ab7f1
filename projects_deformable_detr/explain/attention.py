"""Attention of the encoder and decoder, recomputed from the inputs of their attention modules.

Forward pre-hooks exist only within `record_attention` and store references to the inputs, which the forward pass
computes anyway. Sampling points and attention weights are computed afterwards, for the requested queries only.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ms_deform_attn import MSDeformAttn
from ms_deform_attn.reference import locations_and_weights
from torch import Tensor, nn

from ..errors import ArgumentError
from ..modeling import Detector
from ..modeling.layers import at_least_float32
from ..modeling.structures import Queries, Tokens


@dataclass(frozen=True, eq=False)
class SampledAttention:
    """Deformable attention of R queries (arXiv 2010.04159, equation 3) in pixels of the image.

    Attributes:
        locations: (layers, R, M, L, K, 2) sampling points as (x, y); points outside of the image sample zeros.
        weights: (layers, R, M, L, K) attention weights in [0, 1], with sum 1 over L and K.
        levels: (R, L) int64, feature level of the points; 0 is the finest.
        references: (layers, R, 2) reference points as (x, y); centers of reference boxes.
    """

    locations: Tensor
    weights: Tensor
    levels: Tensor
    references: Tensor


@dataclass(frozen=True, eq=False)
class DenseAttention:
    """DETR's attention of R queries to all tokens (arXiv 2005.12872, appendix A.1).

    Attributes:
        weights: (layers, R, M, h, w) attention weights in [0, 1], with sum 1 over h and w; the map covers the image.
    """

    weights: Tensor


Attention = SampledAttention | DenseAttention


@dataclass(frozen=True)
class Call:
    """Inputs of one call of an attention module."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Recording:
    """Inputs of the attention modules in one forward pass.

    Attributes:
        encoder: calls of the self-attention of each encoder layer; one for each level without multi-scale attention.
        decoder: calls of the cross-attention of each decoder layer; empty for the encoder-only detector.
        queries: input of the decoder, None for the encoder-only detector.
    """

    encoder: list[list[Call]]
    decoder: list[list[Call]]
    queries: Queries | None = None
    _tokens: Tokens | None = None

    @property
    def tokens(self) -> Tokens:
        """Input of the encoder."""
        if self._tokens is None:
            raise RuntimeError("no forward pass has been recorded")
        return self._tokens

    def start(self, tokens: Tokens) -> None:
        """Records the input of the encoder; raises `RuntimeError` in a second forward pass."""
        if self._tokens is not None:
            raise RuntimeError("record_attention records one forward pass: use a new context for each")
        self._tokens = tokens

    def tokens_at(self, points: Tensor) -> Tensor:
        """Returns the indices (P * L,) of the tokens nearest to points (P, 2) on each level, of the first image.

        Points are (x, y), normalized by the image without padding.
        """
        tokens = self.tokens
        centers = tokens.centers()[0].masked_fill(tokens.padding_mask[0, :, None], torch.inf)
        sizes = [height * width for height, width in tokens.spatial_shapes]
        nearest = [
            (level - points.to(centers)[:, None]).square().sum(-1).argmin(1) + start
            for level, start in zip(centers.split(sizes), tokens.level_start_index, strict=True)
        ]
        return torch.stack(nearest, dim=1).flatten()

    def levels_of(self, rows: Tensor) -> Tensor:
        """Returns the levels (R,) of tokens with indices (R,)."""
        starts = torch.tensor(self.tokens.level_start_index, device=rows.device)
        return torch.searchsorted(starts, rows, right=True) - 1

    def of_tokens(self, rows: Tensor, size: tuple[int, int]) -> Attention:
        """Computes the encoder's self-attention of tokens with indices (R,) in the first image, of size (H, W)."""
        if not self.encoder:
            raise ArgumentError("points", "need an encoder with at least one layer to explain its attention")
        if len(self.encoder[0]) == 1:
            return self._attention([calls[0] for calls in self.encoder], rows, size)
        # Without multi-scale attention, each level is a call with its own tokens.
        parts, places, found = [], [], self.levels_of(rows)
        for level in range(len(self.tokens.spatial_shapes)):
            places.append((found == level).nonzero()[:, 0])
            calls = [calls[level] for calls in self.encoder]
            start = self.tokens.level_start_index[level]
            parts.append(self._sampled(calls, rows[places[-1]] - start, size, [level]))
        order = torch.cat(places).argsort()
        return SampledAttention(
            torch.cat([part.locations for part in parts], 1)[:, order],
            torch.cat([part.weights for part in parts], 1)[:, order],
            torch.cat([part.levels for part in parts])[order],
            torch.cat([part.references for part in parts], 1)[:, order],
        )

    def of_queries(self, rows: Tensor, size: tuple[int, int]) -> Attention:
        """Computes the attention of queries (R,) of the first image, of size (H, W), to the encoder's output.

        The queries of the encoder-only detector are its tokens, whose self-attention is returned.
        """
        if not self.decoder:
            return self.of_tokens(rows, size)
        return self._attention([calls[0] for calls in self.decoder], rows, size)

    def _attention(self, calls: list[Call], rows: Tensor, size: tuple[int, int]) -> Attention:
        if isinstance(calls[0].module, MSDeformAttn):
            return self._sampled(calls, rows, size, list(range(len(self.tokens.spatial_shapes))))
        (height, width), ratio = self.tokens.spatial_shapes[0], self.tokens.valid_ratios[0, 0].tolist()
        maps = torch.cat([attention_maps(call, rows)[:1] for call in calls]).transpose(1, 2)
        maps = maps.unflatten(-1, (height, width))
        return DenseAttention(maps[..., : round(height * ratio[1]), : round(width * ratio[0])])

    def _sampled(self, calls: list[Call], rows: Tensor, size: tuple[int, int], levels: list[int]) -> SampledAttention:
        """Converts the points of modules that attend to ``levels`` to pixels."""
        found = [sampling_points(call, rows) for call in calls]
        # Coordinates of a level are normalized by the padded image.
        scale = self.tokens.valid_ratios.new_tensor(size[::-1]) / self.tokens.valid_ratios[0, levels]  # (L, 2)
        references = torch.stack([call.args[1][0, rows, 0, :2] for call in calls])
        return SampledAttention(
            torch.stack([locations[0] for locations, _ in found]) * scale[:, None],
            torch.stack([weights[0] for _, weights in found]),
            torch.tensor(levels, device=rows.device).expand(len(rows), -1),
            references * scale[0],
        )


@contextmanager
def record_attention(detector: Detector) -> Iterator[Recording]:
    """Records the inputs of the attention modules of one forward pass in the current thread.

    The hooks are removed when the context ends; predictions do not change.

    Raises:
        ArgumentError: if the encoder or decoder has other attention modules than those of the papers.
    """
    modules = {
        "encoder": [layer.self_attn for layer in getattr(detector.encoder, "layers", ())],
        "decoder": [layer.cross_attn for layer in getattr(detector.decoder, "layers", ())],
    }
    if other := [module for part in modules.values() for module in part if not isinstance(module, _MODULES)]:
        kind = type(other[0]).__name__
        raise ArgumentError("detector", f"must have the attention of DETR or Deformable DETR, got {kind}")
    recording = Recording([[] for _ in modules["encoder"]], [[] for _ in modules["decoder"]])
    thread = threading.get_ident()  # other threads may use the same model

    def add_hook(module: nn.Module, record: Callable[[Call], None]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == thread:
                record(Call(module, args, kwargs))

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def record_queries(call: Call) -> None:
        recording.queries = call.args[0]

    handles = [add_hook(detector.encoder, lambda call: recording.start(call.args[0]))]
    if detector.decoder is not None:
        handles.append(add_hook(detector.decoder, record_queries))
    for part, calls in (("encoder", recording.encoder), ("decoder", recording.decoder)):
        for module, own in zip(modules[part], calls, strict=True):
            handles.append(add_hook(module, own.append))
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


_MODULES = (MSDeformAttn, nn.MultiheadAttention)


def sampling_points(call: Call, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
    """Computes the points of a call of `MSDeformAttn` for queries with indices (R,).

    Returns:
        locations (N, R, M, L, K, 2), normalized by the padded levels, and weights (N, R, M, L, K), the arguments of
        ``ms_deform_attn``.
    """
    module, (query, references, _, shapes, *_) = call.module, call.args
    assert isinstance(module, MSDeformAttn)
    query, references = query[:, rows], references[:, rows]
    sizes = *query.shape[:2], module.n_heads, module.n_levels, module.n_points
    offsets = at_least_float32(module.sampling_offsets(query)).view(*sizes, 2)
    logits = at_least_float32(module.attention_weights(query)).view(sizes)
    return locations_and_weights(shapes, references.to(offsets.dtype), offsets, logits)


def attention_maps(call: Call, rows: Tensor | slice) -> Tensor:
    """Computes the attention weights (N, M, R, S) of a call of ``nn.MultiheadAttention`` for queries (R,)."""
    query, key, value = call.args
    module, mask = call.module, call.kwargs.get("key_padding_mask")
    assert isinstance(module, nn.MultiheadAttention)
    compute = partial(nn.MultiheadAttention.forward, module)  # MultiheadAttention of `modeling` returns no weights
    _, maps = compute(query[:, rows], key, value, mask, average_attn_weights=False)
    assert maps is not None
    return maps
