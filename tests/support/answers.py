"""A text engine on the toy session, and what one needs to watch it."""

import queue
import threading

from outpost_runtime.text.decoder import Decoder
from outpost_runtime.text.engine import TextEngine
from outpost_runtime.text.request import Sampling, TextRequest, TokenEvent

from tests.support import toy

MAX_LENGTH = 1024


def _decode(tokens):
    return "".join(chr(96 + token % 26) for token in tokens)


def new_engine(session=None, *, rows=1, blocks=0, **changes):
    session = session or toy.ToySession()
    decoder = Decoder(session, rows=rows, max_length=MAX_LENGTH, blocks=blocks)
    settings = {"decode_text": _decode, "end_tokens": frozenset(), "queue_limit": 4} | changes
    return TextEngine(decoder, **settings)


def new_request(prompt=(5, 6, 7), **changes):
    return TextRequest(**{"prompt_ids": tuple(prompt), "sampling": Sampling()} | changes)


def events_of(engine, request):
    return begin(engine, request)()


def continuation(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(toy.next_token(tokens))
    return tokens[len(prompt) :]


class Gate:
    """A sink that lets the engine make one token at a time."""

    def __init__(self):
        self.events = queue.SimpleQueue()
        self._go = threading.Semaphore(0)

    def __call__(self, event):
        self.events.put(event)
        self._go.acquire(timeout=20)

    def go(self, count=1):
        self._go.release(count)


def begin(engine, request):
    """Submit; returns a function that waits for all events."""
    events = queue.SimpleQueue()
    engine.submit(request, events.put)

    def wait():
        received = [events.get(timeout=20)]
        while isinstance(received[-1], TokenEvent):
            received.append(events.get(timeout=20))
        return received

    return wait


def token_ids(events):
    return [event.token_id for event in events[:-1]]
