"""The process of one session: ``python -m outpost_runtime.sessions.worker`` with its sockets.

It opens one model and answers runs until its parent's end of the socket closes, which the
system does when the parent dies, however that was. See ``process.py``.
"""

import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from outpost_runtime.errors import OutpostError
from outpost_runtime.sessions.bound_memory import BoundMemory
from outpost_runtime.sessions.handover import InheritedGraph, specs_described
from outpost_runtime.sessions.ort import OrtBinding, OrtSession
from outpost_runtime.sessions.shared_tensors import SharedFile, receive, send


def main() -> int:
    """Serve; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the parent, which tells us
    socket_number, *numbers = map(int, sys.argv[1:])
    channel = socket.socket(fileno=socket_number)
    order = receive(channel)
    if order is None:
        return 0
    try:
        session = OrtSession(InheritedGraph(order), threads=order["threads"])
    except OutpostError as error:
        send(channel, _failure(error))
        return 1
    send(channel, _ready(session))
    runs = _Runs(session, *numbers)
    while (request := receive(channel)) is not None:
        send(channel, runs.answer(request))
    return 0


class _Runs:
    """The runs of a session, on tensors that are shared with the parent."""

    def __init__(
        self, session: OrtSession, inputs: int, outputs: int, bound: int | None = None
    ) -> None:
        self._session = session
        self._inputs, self._outputs = SharedFile(inputs), SharedFile(outputs)
        self._memory = None if bound is None else BoundMemory(bound)
        self._bindings: dict[int, OrtBinding] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run what is asked for and say how it went."""
        try:
            if "binding" in request:
                self._run_bound(request)
                return {}
            feeds = self._inputs.get(request["tensors"])
            return {"tensors": self._outputs.put(self._session.run(feeds))}
        except OutpostError as error:
            return _failure(error)

    def _run_bound(self, request: Mapping[str, Any]) -> None:
        assert self._memory is not None  # noqa: S101 - the parent has it
        number = request["binding"]
        if request["new"]:
            self._bindings[number] = self._session.bind({}, {})
        binding = self._bindings[number]
        for name, place in request["outputs"].items():
            binding.put(name, self._memory.at(place))
        for name, place in request["inputs"].items():
            binding.feed(name, self._memory.at(place))
        binding.run()


def _ready(session: OrtSession) -> dict[str, Any]:
    inputs, outputs = specs_described(session.inputs), specs_described(session.outputs)
    return {"inputs": inputs, "outputs": outputs}


def _failure(error: OutpostError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": error.message}


if __name__ == "__main__":
    sys.exit(main())
