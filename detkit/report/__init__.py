"""report.html: what a detector finds and what goes wrong, in one page that needs nothing beside it."""

from detkit.report.analysis import Analysis, analyse
from detkit.report.write import write_report

__all__ = ["Analysis", "analyse", "write_report"]
