"""Measurements: against a named peer, in one run, as a ratio, medians of repetitions."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of peers that do not import the runtime, too
