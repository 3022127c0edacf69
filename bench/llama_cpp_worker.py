"""llama.cpp as a worker: ``python -m bench.llama_cpp_worker GGUF``; runs in bench's own venv."""

import sys
import time

import numpy as np
from llama_cpp import Llama

from bench.workers import answer

THREADS = 2
CONTEXT = 2048


def main() -> None:
    """Load the model and answer."""
    settings = {"n_ctx": CONTEXT, "n_threads": THREADS, "n_threads_batch": THREADS}
    model = Llama(sys.argv[1], verbose=False, n_batch=512, **settings)

    def decode(ids: list[int], tokens: int) -> float:
        model.reset()
        generated = model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0)
        next(generated)
        started = time.perf_counter()
        for _ in range(tokens - 1):
            next(generated)
        return (tokens - 1) / (time.perf_counter() - started)

    def prefill(ids: list[int]) -> float:
        model.reset()
        started = time.perf_counter()
        model.eval(ids)
        return len(ids) / (time.perf_counter() - started)

    def perplexity(ids: list[int]) -> float:
        every = Llama(sys.argv[1], verbose=False, n_batch=512, logits_all=True, **settings)
        every.eval(ids)
        logits = np.array(every.scores[: len(ids) - 1], np.float64)
        top = logits.max(1)
        totals = np.log(np.exp(logits - top[:, None]).sum(1)) + top
        return float(np.exp((totals - logits[np.arange(len(ids) - 1), ids[1:]]).mean()))

    answer({"decode": decode, "prefill": prefill, "perplexity": perplexity})


if __name__ == "__main__":
    main()
