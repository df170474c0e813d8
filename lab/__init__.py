"""The laboratory: how claims were decided. Studies, benchmarks, claims and their figures; lab/README.md is its log."""

import helpers  # noqa: F401  (first: it quiets what bitsandbytes hints at when it is imported)
