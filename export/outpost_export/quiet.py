"""Libraries that talk too much, asked to be quiet: a build's output is its own."""

import logging
import warnings

import transformers


def silence_libraries() -> None:
    """Stop progress bars and warnings of the libraries; a build reports its own steps."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    for name in ("torch", "onnxscript", "onnx_ir", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
