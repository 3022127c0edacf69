"""onnxruntime-genai's Generator as a worker: ``python -m bench.genai_worker FOLDER STREAMS``.

Streams are the rows of one batch. Where a prompt's leading tokens are held already,
``rewind_to`` keeps them.
"""

import itertools
import sys
import time
from typing import Any

import numpy as np
import onnxruntime_genai

from bench.workers import CONTEXT, Times, answer, common_prefix


class Generator:
    """A model, and one generator that reads single prompts.

    Args:
        folder: Written by :mod:`bench.genai_folder`.
        streams: Does not matter here: every batch has a generator of its own size.
    """

    def __init__(self, folder: str, streams: int) -> None:  # noqa: ARG002 - see above
        self._model = onnxruntime_genai.Model(folder)
        self._single = self._generator(1)
        self._held: list[int] = []

    def first_token(self, ids: list[int]) -> None:
        """See :class:`bench.workers.Engine`."""
        kept = min(common_prefix(ids, self._held), len(ids) - 1)
        if self._held:
            self._single.rewind_to(kept)
        self._single.append_tokens(np.array(ids[kept:], np.int32))
        self._single.generate_next_token()
        self._held = ids

    def decode(self, prompts: list[list[int]], tokens: int) -> Times:
        """See :class:`bench.workers.Engine`."""
        generator = self._generator(len(prompts), min_length=CONTEXT)
        generator.append_tokens(np.array(prompts, np.int32))
        times: Times = [[] for _ in prompts]
        for _ in range(tokens):
            generator.generate_next_token()
            now = time.perf_counter()
            for stream in times:
                stream.append(now)
        return times

    def perplexity(self, ids: list[int]) -> float:
        """See :class:`bench.workers.Engine`."""
        generator = self._generator(1)
        total = 0.0
        for token, following in itertools.pairwise(ids):
            generator.append_tokens(np.array([token], np.int32))
            logits = generator.get_logits().reshape(-1).astype(np.float64)
            total += np.logaddexp.reduce(logits) - logits[following]
        return float(np.exp(total / (len(ids) - 1)))

    def _generator(self, rows: int, **search: int) -> Any:
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        # A `min_length` keeps the answers from ending by themselves.
        parameters.set_search_options(batch_size=rows, max_length=CONTEXT, **search)
        return onnxruntime_genai.Generator(self._model, parameters)


if __name__ == "__main__":
    answer(Generator(sys.argv[1], int(sys.argv[2])))
