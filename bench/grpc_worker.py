"""A client of ``outpost serve`` as a worker: ``python -m bench.grpc_worker ADDRESS MODEL``.

One process, one connection, one thread per stream: what a site's own service would do.
"""

import sys
import threading
import time

from outpost.v1 import text_pb2
from outpost_runtime.client import Client

from bench.workers import Times, answer_tasks, decode_rate


def main() -> None:
    """Connect and answer."""
    address, model = sys.argv[1:]
    with Client(address) as client:

        def read(text: str, tokens: int, came: list[float]) -> None:
            request = text_pb2.GenerateRequest(model=model, prompt=text, return_tokens=True)
            request.parameters.max_new_tokens = tokens
            request.parameters.temperature = 0
            for response in client.generate(request):
                came += [time.perf_counter()] * len(response.piece.tokens)

        def decode(texts: list[str], tokens: int) -> float:
            times: Times = [[] for _ in texts]
            threads = [
                threading.Thread(target=read, args=(text, tokens, came))
                for text, came in zip(texts, times, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return decode_rate(times)

        answer_tasks({"decode": decode})


if __name__ == "__main__":
    main()
