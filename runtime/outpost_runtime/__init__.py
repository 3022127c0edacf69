"""Outpost's runtime: a store of bundles, engines that run them, a gRPC server in front."""

import os

__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime's Linux builds report to their maker what they open, and keep an
# identifier of the machine, unless this is set before they are loaded (Privacy.md of its wheel).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# gRPC's core writes a line to the log for every client whose TLS handshake fails: a port scanner
# would fill a box's journal. What concerns us comes as an exception.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
