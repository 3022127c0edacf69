"""llama.cpp as a worker: ``python -m bench.llama_cpp_worker GGUF STREAMS``, in bench's own venv.

Streams are sequences of one context: one ``llama_decode`` per step holds one token of
each, as llama.cpp's own server does it. A prompt's leading tokens that sequence 0 holds
already are kept, as llama-cpp-python's ``generate`` does it.
"""

import sys
import time
from collections.abc import Sequence

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from bench.workers import CONTEXT, THREADS, Times, answer, common_prefix

BATCH = 512

_silent = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)


class LlamaCpp:
    """A model and one context.

    Its settings are the fastest of those that were tried one against the other: SETTINGS.

    Args:
        path: A GGUF file.
        streams: Sequences that can live at once.
    """

    def __init__(self, path: str, streams: int) -> None:
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_silent, None)
        self._model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = CONTEXT * streams
        settings.n_seq_max = streams
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = THREADS
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        settings.kv_unified = False
        settings.swa_full = True
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._held: list[int] = []

    def first_token(self, ids: list[int]) -> None:
        """See :class:`bench.workers.Engine`."""
        kept = min(common_prefix(ids, self._held), len(ids) - 1)
        llama_cpp.llama_memory_seq_rm(self._memory, 0, kept, -1)
        self._held = ids
        for start in range(kept, len(ids), BATCH):
            chunk = ids[start : start + BATCH]
            last = start + BATCH >= len(ids)
            places = range(start, start + len(chunk))
            wanted = [last and place == places[-1] for place in places]
            self._run(chunk, places, [0] * len(chunk), wanted)
        self._logits(1)[0].argmax()

    def decode(self, prompts: list[list[int]], tokens: int) -> Times:
        """See :class:`bench.workers.Engine`."""
        self._forget()
        chosen = np.array([self._read(number, prompt) for number, prompt in enumerate(prompts)])
        streams = range(len(prompts))
        times = [[time.perf_counter()] for _ in streams]
        for step in range(tokens - 1):
            places = [len(prompt) + step for prompt in prompts]
            self._run(chosen.tolist(), places, streams, [True] * len(prompts))
            chosen = self._logits(len(prompts)).argmax(1)
            now = time.perf_counter()
            for stream in times:
                stream.append(now)
        return times

    def perplexity(self, ids: list[int]) -> float:
        """See :class:`bench.workers.Engine`."""
        self._forget()
        total = 0.0
        for start in range(0, len(ids) - 1, BATCH):
            chunk, following = ids[start:-1][:BATCH], ids[start + 1 :][:BATCH]
            places = range(start, start + len(chunk))
            self._run(chunk, places, [0] * len(chunk), [True] * len(chunk))
            logits = self._logits(len(chunk))
            for row, token in zip(logits, following, strict=True):
                exact = row.astype(np.float64)
                total += np.logaddexp.reduce(exact) - exact[token]
        return float(np.exp(total / (len(ids) - 1)))

    def _read(self, sequence: int, prompt: list[int]) -> int:
        count = len(prompt)
        self._run(prompt, range(count), [sequence] * count, [False] * (count - 1) + [True])
        return int(self._logits(1)[0].argmax())

    def _run(
        self,
        tokens: Sequence[int],
        places: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[bool],
    ) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = places[index]
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequences[index]
            batch.logits[index] = wanted[index]
        status = llama_cpp.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode: {status}"

    def _logits(self, rows: int) -> NDArray[np.float32]:
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (rows, self._vocabulary))

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)
        self._held = []


if __name__ == "__main__":
    answer(LlamaCpp(sys.argv[1], int(sys.argv[2])))
