"""The projects whose options are known."""

from .official import OFFICIAL
from .rows import Source

SOURCES: dict[str, Source] = {source.name: source for source in (OFFICIAL,)}
