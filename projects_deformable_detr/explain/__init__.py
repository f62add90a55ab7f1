"""Attention of a trained model: sampling points, attention maps, their entropy, and gradients of the input."""

from .attention import DenseAttention, Recording, SampledAttention, record_attention
from .entropy import negative_entropy
from .gradients import input_gradients

__all__ = [
    "DenseAttention",
    "Recording",
    "SampledAttention",
    "input_gradients",
    "negative_entropy",
    "record_attention",
]
