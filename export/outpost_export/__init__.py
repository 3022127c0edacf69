"""Outpost's exporter: a fine-tuned checkpoint in, a bundle with evidence out."""

import outpost_runtime  # noqa: F401 - keeps libraries from reporting, if it comes before them

__version__ = "0.1.0"
