"""OpenVINO GenAI as a worker: ``python -m bench.openvino_worker FOLDER PRECISION STREAMS``.

Its continuous batching pipeline does all of it, one stream too (``LLMPipeline`` on a CPU
is the same pipeline with a thread around it), with its own prefix cache. PRECISION is
that of activations: ``bf16`` is what it chooses itself on processors with AMX and reads
prompts fastest, ``f32`` makes tokens fastest.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]  # lives in an environment of its own
import openvino_genai  # type: ignore[import-not-found]  # the same
from numpy.typing import NDArray

from bench.workers import CONTEXT, THREADS, Times, answer

_SCORED_AT_ONCE = 128


class OpenVino:
    """A pipeline.

    Args:
        folder: Written by ``optimum-cli export openvino``.
        precision: Of activations: ``bf16`` or ``f32``.
        streams: Sequences that can live at once.
    """

    def __init__(self, folder: Path, precision: str, streams: int) -> None:
        self._folder = folder
        self._properties = {
            "INFERENCE_NUM_THREADS": THREADS,
            "INFERENCE_PRECISION_HINT": precision,
        }
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.enable_prefix_caching = True
        scheduling.max_num_seqs = streams
        scheduling.max_num_batched_tokens = CONTEXT
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder), scheduling, "CPU", self._properties
        )
        self._requests = 0

    def first_token(self, ids: list[int]) -> None:
        """See :class:`bench.workers.Engine`."""
        self.decode([ids], 1)

    def decode(self, prompts: list[list[int]], tokens: int) -> Times:
        """See :class:`bench.workers.Engine`."""
        handles = [self._submit(prompt, tokens) for prompt in prompts]
        times: Times = [[] for _ in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter()
            for handle, stream in zip(handles, times, strict=True):
                while handle.can_read():
                    made = sum(len(output.generated_ids) for output in handle.read().values())
                    stream.extend([now] * made)
        return times

    def perplexity(self, ids: list[int]) -> float:
        """See :class:`bench.workers.Engine`; the pipeline shows no logits, the model does."""
        model = openvino.Core().compile_model(
            self._folder / "openvino_model.xml", "CPU", self._properties
        )
        request = model.create_infer_request()
        total = 0.0
        for start in range(0, len(ids) - 1, _SCORED_AT_ONCE):
            chunk = ids[start:-1][:_SCORED_AT_ONCE]
            following = ids[start + 1 :][:_SCORED_AT_ONCE]
            logits = _logits(request, chunk, start)
            for row, token in zip(logits, following, strict=True):
                exact = row.astype(np.float64)
                total += np.logaddexp.reduce(exact) - exact[token]
        return float(np.exp(total / (len(ids) - 1)))

    def _submit(self, prompt: list[int], tokens: int) -> Any:
        greedy = openvino_genai.GenerationConfig()
        greedy.max_new_tokens = tokens
        greedy.ignore_eos = True
        self._requests += 1
        return self._pipeline.add_request(
            self._requests, openvino.Tensor(np.array([prompt], np.int64)), greedy
        )


def _logits(request: Any, chunk: list[int], past: int) -> NDArray[np.float32]:
    count = len(chunk)
    outputs = request.infer(
        {
            "input_ids": np.array([chunk], np.int64),
            "attention_mask": np.ones((1, past + count), np.int64),
            "position_ids": np.arange(past, past + count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )
    logits: NDArray[np.float32] = outputs["logits"][0]
    return logits


if __name__ == "__main__":
    answer(OpenVino(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
