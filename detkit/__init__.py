"""detkit: the classic line of object detectors on shared backbones."""
