"""Several detectors side by side: trained one after the other, then measured alike on the same data."""
