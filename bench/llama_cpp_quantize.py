"""A GGUF quantized again to Q8_0: ``python -m bench.llama_cpp_quantize SOURCE OUT``.

The only GGUF of the model that a registry carries is Q4_K_M, and the checkpoint that
everybody else starts from is that file dequantized: so are its numbers here, before
they become Q8_0.
"""

import ctypes
import sys

import llama_cpp

from bench.workers import THREADS


def main() -> None:
    """Quantize."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    options.allow_requantize = True
    options.nthread = THREADS
    source, out = (argument.encode() for argument in sys.argv[1:])
    status = llama_cpp.llama_model_quantize(source, out, ctypes.byref(options))
    assert status == 0, f"llama_model_quantize: {status}"


if __name__ == "__main__":
    main()
