import helpers  # noqa: F401  (first, as it quiets what bitsandbytes hints at when it is imported)
