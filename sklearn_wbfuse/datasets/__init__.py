"""Data sets and reference architectures, for the demo, the examples and the benchmarks alone."""
