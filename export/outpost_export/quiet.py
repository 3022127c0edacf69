"""Libraries that talk too much, asked to be quiet: a build's output is its own."""

import logging
import warnings
from typing import Any

import transformers


def silence_libraries() -> None:
    """Stop progress bars and warnings of the libraries; a build reports its own steps."""
    library: Any = transformers.utils.logging  # untyped
    library.set_verbosity_error()
    library.disable_progress_bar()
    warnings.simplefilter("ignore")
    for name in ("torch", "onnxscript", "onnx_ir", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
