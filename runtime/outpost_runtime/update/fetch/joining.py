"""One read made of several: what retrying and failing over have in common."""

from collections.abc import Callable, Iterator

from outpost_runtime.errors import FetchError, NotFoundError
from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.fetch.paths import may_be_replaced

Successor = Callable[[FetchError | NotFoundError, int], Fetcher]
"""Says who goes on after a failure, given the bytes done; raises when nobody shall."""


def joined(
    fetcher: Fetcher, successor: Successor, path: str, *, start: int, limit: int
) -> Iterator[bytes]:
    """Read a file; where a source fails, its successor goes on at the byte that it reached.

    A file that may be replaced between two requests is read whole before any of it is given,
    and from its beginning after every failure: its pieces must not be joined.

    Raises:
        NotFoundError, FetchError: What ``successor`` raises.
    """
    held: list[bytes] | None = [] if may_be_replaced(path) else None
    done = start
    while True:
        try:
            for piece in fetcher.read(path, start=done, limit=limit):
                done += len(piece)
                if done > limit:
                    raise _too_long(fetcher, path, limit)
                if held is None:
                    yield piece
                else:
                    held.append(piece)
            break
        except (FetchError, NotFoundError) as error:
            if held is not None:
                held.clear()
                done = start
            fetcher = successor(error, done)
    yield from held or ()


def _too_long(fetcher: Fetcher, path: str, limit: int) -> FetchError:
    return FetchError(
        f"{path} of {fetcher.label} is larger than {limit:,} bytes.", retry_after=float("inf")
    )
