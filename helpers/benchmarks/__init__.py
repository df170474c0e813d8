"""`python -m helpers.benchmarks`: what memory and time training and prediction take on this device."""
