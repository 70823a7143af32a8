"""Trained detectors on images, videos and data sets."""
