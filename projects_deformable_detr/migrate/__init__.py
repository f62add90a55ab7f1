"""From other projects' options to a config of this one: python -m projects_deformable_detr.migrate."""

from .rows import Row, Source
from .sources import SOURCES
from .translate import Translation, translate

__all__ = ["SOURCES", "Row", "Source", "Translation", "translate"]
