"""Proposals: regions of a photo that may hold an object, made once for a data set and kept in a store."""
