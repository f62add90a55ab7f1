"""Sparsity of attention: negative entropy of the attention weights (arXiv 2011.10881)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from ms_deform_attn import MSDeformAttn
from torch import Tensor

from ..errors import ArgumentError
from ..modeling import Detector
from .attention import Call, Recording, attention_maps, record_attention, sampling_points


@torch.no_grad()
def negative_entropy(recording: Recording) -> Tensor:
    """Computes the mean of the sum of a log a of the decoder's cross-attention, (layers,), in nats.

    The sum is over the attention weights a of one head of one query: over all S tokens in DETR, where it is between
    -log(S) (uniform) and 0 (one token), and over the L * K sampling points in Deformable DETR, between -log(L * K) and
    0. The mean is over images, queries and heads.

    Raises:
        ArgumentError: for a detector without a decoder.
    """
    if not recording.decoder:
        raise ArgumentError("recording", "must be of a detector with a decoder: the encoder-only detector has none")
    return torch.stack([_entropy(calls[0]) for calls in recording.decoder])


def _entropy(call: Call) -> Tensor:
    everything = slice(None)
    if isinstance(call.module, MSDeformAttn):
        weights = sampling_points(call, everything)[1].flatten(-2)
    else:
        weights = attention_maps(call, everything).float()
    return -torch.special.entr(weights).sum(-1).mean()


class EntropyMeter:
    """Mean negative entropy of each decoder layer over the first images of an evaluation.

    Args:
        num_images: number of images; the last batch is included completely.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self._count = 0
        self._total: Tensor | float = 0.0

    @contextmanager
    def measuring(self, detector: Detector) -> Iterator[None]:
        """Measures the first images that the detector processes in the context, instead of earlier ones."""
        self._count, self._total = 0, 0.0
        recordings: list[Recording] = []
        current = ExitStack()

        def start(*_: Any) -> None:
            if self._count < self.num_images:
                recordings.append(current.enter_context(record_attention(detector)))

        def end(*_: Any) -> None:
            current.close()
            for recording in recordings:
                count = len(recording.tokens.values)
                self._total = self._total + count * negative_entropy(recording).double().cpu()
                self._count += count
            recordings.clear()

        handles = detector.register_forward_pre_hook(start), detector.register_forward_hook(end)
        try:
            yield
        finally:
            current.close()
            for handle in handles:
                handle.remove()

    def scalars(self) -> dict[str, float]:
        """Returns the mean of each decoder layer under its name in logs; {} without images."""
        if not self._count:
            return {}
        means = torch.as_tensor(self._total) / self._count
        return {f"attention/negative_entropy_{layer}": value for layer, value in enumerate(means.tolist())}
