"""Outpost's engine as a worker: ``python -m bench.outpost_worker BUNDLE``."""

import queue
import sys
from pathlib import Path

from outpost_runtime.bundle import read_bundle
from outpost_runtime.models import open_model
from outpost_runtime.text.model import TextModel
from outpost_runtime.text.request import Event, FinishEvent, Sampling, TextRequest, TokenEvent
from outpost_runtime.text.scoring import score

from bench.workers import answer

THREADS = 2


def main() -> None:
    """Load the bundle and answer."""
    model = open_model(read_bundle(Path(sys.argv[1])), threads=THREADS)
    assert isinstance(model, TextModel)

    def run(ids: list[int], tokens: int) -> FinishEvent:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = TextRequest(prompt_ids=tuple(ids), sampling=Sampling(), max_new_tokens=tokens)
        model.engine.submit(request, events.put)
        while isinstance(event := events.get(), TokenEvent):
            pass
        assert isinstance(event, FinishEvent)
        return event

    def decode(ids: list[int], tokens: int) -> float:
        event = run(ids, tokens)
        return (event.generated_tokens - 1) / event.decode_seconds

    def prefill(ids: list[int]) -> float:
        return len(ids) / run(ids, 1).prefill_seconds

    def perplexity(ids: list[int]) -> float:
        return score(model.decoder, ids).perplexity

    answer({"decode": decode, "prefill": prefill, "perplexity": perplexity})
    model.close()


if __name__ == "__main__":
    main()
