"""Outpost's exporter: a fine-tuned checkpoint in, a bundle with evidence out."""

__version__ = "0.1.0"
