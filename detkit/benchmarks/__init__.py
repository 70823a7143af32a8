"""What `tools/benchmark.py` times: detkit beside its peers, in one run."""
