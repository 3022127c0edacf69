"""Measurements: against a named peer, in one run, as a ratio, medians of repetitions."""
