"""Published weights and their downloads. PyTorch is imported only when needed."""

from .entries import ENTRIES, TORCHVISION, ZOO, Entry, download, get, locate

__all__ = ["ENTRIES", "TORCHVISION", "ZOO", "Entry", "download", "get", "locate"]
