"""Files of weights, detkit's own and other programs', read into detkit's detectors."""
