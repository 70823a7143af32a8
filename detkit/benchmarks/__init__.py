"""What `tools/benchmark.py` times: each subject beside its peer, in one run."""
