"""Data sets, augmentation and the loader. Knows nothing of models."""
