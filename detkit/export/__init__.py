"""Detectors as files for other programs, and smaller ones."""
