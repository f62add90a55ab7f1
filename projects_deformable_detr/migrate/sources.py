"""The projects whose options are known."""

from .detrex import DETREX
from .mmdetection import MMDETECTION
from .official import OFFICIAL
from .rows import Source
from .transformers import TRANSFORMERS

SOURCES: dict[str, Source] = {source.name: source for source in (OFFICIAL, DETREX, MMDETECTION, TRANSFORMERS)}
