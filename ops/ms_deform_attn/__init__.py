"""Multi-scale deformable attention (arXiv 2010.04159): compiled for CPU and CUDA, with a plain PyTorch reference."""

from ._version import __version__
from .functional import ms_deform_attn, ms_deform_attn_fused
from .module import MSDeformAttn
from .reference import ms_deform_attn_reference

__all__ = ["MSDeformAttn", "__version__", "ms_deform_attn", "ms_deform_attn_fused", "ms_deform_attn_reference"]
