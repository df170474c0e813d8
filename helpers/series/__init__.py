"""`python -m helpers.series`: the notebooks, run in order."""
