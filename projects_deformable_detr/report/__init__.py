"""Reports on training runs as a self-contained HTML page; see docs/report.md."""

from .page import write_report

__all__ = ["write_report"]
