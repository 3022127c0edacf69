"""Outpost's engine as a worker: ``python -m bench.outpost_worker BUNDLE STREAMS``."""

import queue
import sys
import time
from pathlib import Path

from outpost_runtime.bundle import read_bundle
from outpost_runtime.opening import ModelSettings, open_model
from outpost_runtime.text.limits import TextLimits
from outpost_runtime.text.model import TextModel
from outpost_runtime.text.request import FinishEvent, Sampling, TextRequest, TokenEvent
from outpost_runtime.text.scoring import score

from bench.workers import THREADS, Times, answer

_MEMORY_PER_STREAM = 100 << 20
"""A row of 2,048 tokens takes 72 MiB; a quarter of the whole is for remembered prefixes."""

_ENDED = -1


class Outpost:
    """An opened bundle.

    Args:
        folder: A bundle whose answers do not end by themselves.
        streams: Requests that run side by side.
    """

    def __init__(self, folder: Path, streams: int) -> None:
        model = open_model(
            read_bundle(folder),
            ModelSettings(
                threads=THREADS,
                text=TextLimits(streams=streams, memory_bytes=streams * _MEMORY_PER_STREAM),
            ),
        )
        assert isinstance(model, TextModel)
        assert model.decoder.rows == streams, f"memory for {model.decoder.rows} streams only"
        self._model = model

    def first_token(self, ids: list[int]) -> None:
        """See :class:`bench.workers.Engine`."""
        self.decode([ids], 1)

    def decode(self, prompts: list[list[int]], tokens: int) -> Times:
        """See :class:`bench.workers.Engine`."""
        came: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        for number, prompt in enumerate(prompts):
            self._submit(number, prompt, tokens, came)
        times: Times = [[] for _ in prompts]
        open_streams = len(prompts)
        while open_streams:
            number, moment = came.get()
            if number == _ENDED:
                open_streams -= 1
            else:
                times[number].append(moment)
        return times

    def perplexity(self, ids: list[int]) -> float:
        """See :class:`bench.workers.Engine`."""
        return score(self._model.decoder, ids).perplexity

    def _submit(
        self,
        number: int,
        prompt: list[int],
        tokens: int,
        came: "queue.SimpleQueue[tuple[int, float]]",
    ) -> None:
        def sink(event: object) -> None:
            assert isinstance(event, TokenEvent | FinishEvent), event
            which = number if isinstance(event, TokenEvent) else _ENDED
            came.put((which, time.perf_counter()))

        request = TextRequest(prompt_ids=tuple(prompt), sampling=Sampling(), max_new_tokens=tokens)
        self._model.engine.submit(request, sink)


if __name__ == "__main__":
    answer(Outpost(Path(sys.argv[1]), int(sys.argv[2])))
