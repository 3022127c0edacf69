"""Outpost's runtime: a store of bundles, engines that run them, a gRPC server in front."""

__version__ = "0.1.0"
