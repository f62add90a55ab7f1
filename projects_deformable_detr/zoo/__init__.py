"""Published weights: their table, and downloads. PyTorch is imported only when needed."""

from .entries import ENTRIES, TORCHVISION, ZOO, Entry, download, get, locate, table

__all__ = ["ENTRIES", "TORCHVISION", "ZOO", "Entry", "download", "get", "locate", "table"]
