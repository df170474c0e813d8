"""`python -m helpers.claims`: the write-ups' claims, and the verdicts on them."""
