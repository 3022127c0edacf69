"""A process that answers what it likes: in the place of ``outpost_runtime.sessions.worker``.

``OPENED`` and ``ANSWER`` in its environment are what it says when it has opened its model and after
every request. ``LONG`` announces more than a message may have; ``AWAY`` leaves a child with its
socket and ends.
"""

import json
import os
import socket
import struct
import sys

_LENGTH = struct.Struct("<I")


def main() -> None:
    """Serve."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    said = os.environ["OPENED"]
    while _received(channel):
        if said == "LONG":
            channel.sendall(_LENGTH.pack(1 << 30))
        elif said == "AWAY":
            if os.fork():
                os._exit(0)
            channel.settimeout(20)  # only until the other end hangs up
            channel.recv(1)
            return
        else:
            channel.sendall(_LENGTH.pack(len(said)) + said.encode())
        said = os.environ["ANSWER"]


def _received(channel: socket.socket) -> bool:
    head = channel.recv(_LENGTH.size, socket.MSG_WAITALL)
    if not head:
        return False
    return bool(json.loads(channel.recv(*_LENGTH.unpack(head), socket.MSG_WAITALL)))


if __name__ == "__main__":
    main()
