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
from outpost_runtime.sessions.handover import InheritedGraph
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.sessions.shared_tensors import SharedFile, receive, send
from outpost_runtime.tensors import TensorSpec


def main() -> int:
    """Serve; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the parent, which tells us
    socket_number, inputs_number, outputs_number = map(int, sys.argv[1:])
    channel = socket.socket(fileno=socket_number)
    inputs, outputs = SharedFile(inputs_number), SharedFile(outputs_number)
    order = receive(channel)
    if order is None:
        return 0
    try:
        session = OrtSession(InheritedGraph(order), threads=order["threads"])
    except OutpostError as error:
        send(channel, _failure(error))
        return 1
    send(channel, {"inputs": _specs(session.inputs), "outputs": _specs(session.outputs)})
    while (request := receive(channel)) is not None:
        send(channel, _answer(session, request, inputs, outputs))
    return 0


def _answer(
    session: OrtSession, request: Mapping[str, Any], inputs: SharedFile, outputs: SharedFile
) -> dict[str, Any]:
    try:
        return {"tensors": outputs.put(session.run(inputs.get(request["tensors"])))}
    except OutpostError as error:
        return _failure(error)


def _failure(error: OutpostError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": error.message}


def _specs(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    return [{"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in specs]


if __name__ == "__main__":
    sys.exit(main())
