"""onnxruntime-genai's Engine as a worker: ``python -m bench.genai_engine_worker FOLDER STREAMS``.

On a CPU it batches statically: dynamic batching needs paged attention, for which genai's
builder demands CUDA or WebGPU. The static scheduler of 0.18 takes four requests at once,
whatever ``max_batch_size`` says, so more streams never run side by side.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime_genai

from bench.workers import CONTEXT, Times, answer

GRAPH = "model-every-logit.onnx"
"""It binds the logits of every token, and fails with a graph that has only the last one's."""


class BatchEngine:
    """A model and its engine.

    Args:
        folder: Written by :mod:`bench.genai_folder`.
        streams: Requests that run side by side.
    """

    def __init__(self, folder: str, streams: int) -> None:
        config = onnxruntime_genai.Config(folder)
        changed = {
            "model": {"decoder": {"filename": GRAPH}},
            "engine": {"static_batching": {"max_batch_size": streams}},
        }
        config.overlay(json.dumps(changed))
        self._model = onnxruntime_genai.Model(config)
        self._engine = onnxruntime_genai.Engine(self._model)
        self._events = self._engine.create_event_buffer(streams)

    def first_token(self, ids: list[int]) -> None:
        """See :class:`bench.workers.Engine`."""
        self.decode([ids], 1)

    def decode(self, prompts: list[list[int]], tokens: int) -> Times:
        """See :class:`bench.workers.Engine`."""
        requests = [self._submit(prompt, tokens) for prompt in prompts]
        times: Times = [[] for _ in prompts]
        while self._engine.has_pending_requests():
            events = self._engine.run(self._events)
            now = time.perf_counter()
            for event in events:
                assert event.error_code == onnxruntime_genai.EngineErrorCode.NONE, event.error_code
                if event.token is not None:
                    times[requests.index(event.request)].append(now)
        for request in requests:
            request.close()
        return times

    def perplexity(self, ids: list[int]) -> float:
        """Not asked: it has no logits to show, and the graph's weights are the Generator's."""
        raise NotImplementedError

    def _submit(self, prompt: list[int], tokens: int) -> Any:
        options = onnxruntime_genai.RequestOptions()
        options.set_max_session_tokens(CONTEXT)
        request = self._engine.create_request(options=options)
        turn = onnxruntime_genai.TurnOptions(request)
        turn.set_do_sample(False)
        turn.set_max_generated_tokens(tokens)
        turn.set_min_generated_tokens(tokens)
        request.begin_turn(np.array(prompt, np.int32), turn)
        return request


if __name__ == "__main__":
    answer(BatchEngine(sys.argv[1], int(sys.argv[2])))
