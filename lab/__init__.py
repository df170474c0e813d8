"""The laboratory: how claims were decided. Studies, benchmarks, claims and their figures; lab/README.md is its log."""
