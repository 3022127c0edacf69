"""Libraries that talk too much, asked to be quiet: a build's output is its own."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import transformers

_LOG = logging.getLogger(__name__)
_CHATTERERS = (
    "onnxruntime.quantization.matmul_nbits_quantizer",  # two lines for every node of a graph
    "torch.onnx._internal.exporter._registration",
)


def silence_libraries() -> None:
    """Stop progress bars and warnings of the libraries; a build reports its own steps."""
    library: Any = transformers.utils.logging  # untyped
    library.set_verbosity_error()
    library.disable_progress_bar()
    warnings.simplefilter("ignore")
    for name in ("torch", "onnxscript", "onnx_ir", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what graph builders print, log and warn off the terminal; it goes to the debug log."""
    output = io.StringIO()
    loggers = [logging.getLogger(name) for name in _CHATTERERS]
    for logger in loggers:
        logger.disabled = True
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.disabled = False
        _LOG.debug("%s", output.getvalue())
