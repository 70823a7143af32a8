"""Training and evaluation: one loop, one checkpoint format, one evaluator, for every detector."""
