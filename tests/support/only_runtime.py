"""Prove that this environment has the runtime and nothing of what the exporter needs."""

import importlib.util
import sys

FORBIDDEN = (
    "torch",
    "transformers",
    "onnx",
    "optimum",
    "peft",
    "onnxruntime_genai",
    "outpost_export",
)


def main() -> int:
    """Name what should not be here; returns the exit status."""
    present = [name for name in FORBIDDEN if importlib.util.find_spec(name)]
    if present:
        sys.stderr.write(f"The runtime's environment has {', '.join(present)}.\n")
    return 1 if present else 0


if __name__ == "__main__":
    sys.exit(main())
