"""Measurements against peers, each printing its ratios; docs/benchmarks.md tells how they are run."""
