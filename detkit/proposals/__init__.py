"""Where in an image objects may be: class-agnostic boxes for the detectors that classify regions."""

from detkit.proposals.selective_search import MODES, selective_search

__all__ = ["MODES", "selective_search"]
