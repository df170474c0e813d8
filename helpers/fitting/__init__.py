"""Trainer, set up for the series: its arguments, out-of-memory, and runs that go on where they were stopped."""
