"""Several sources in order of preference: mirrors near by, then the repository.

Rules:

1. A source that fails or lies is put aside for this run; the next goes on at the byte that
   was reached.
2. A source without a file does not fail. The next is asked; but of metadata the first answer
   counts, or every poll for a root that is not there yet would ask all of them. Whoever hides
   a root this way is found out by the signatures, or has no timestamp, and is put aside with
   :meth:`FailoverFetcher.blame`.
"""

from collections.abc import Iterator, Sequence

from outpost_runtime.errors import FetchError, NotFoundError
from outpost_runtime.update.fetch import Fetcher
from outpost_runtime.update.fetch.joining import joined


class FailoverFetcher:
    """Several fetchers as one.

    Args:
        sources: In order of preference; at least one.
    """

    def __init__(self, sources: Sequence[Fetcher]) -> None:
        assert sources  # noqa: S101 - our own rule
        self._all = tuple(sources)
        self._sources = list(sources)
        self._last = self._sources[0]
        self._blamed: list[Fetcher] = []

    @property
    def label(self) -> str:
        """The source that the last read came from, or that the next one will be asked of."""
        return self._last.label

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        """Give a file's bytes from ``start`` to its end; see :class:`Fetcher`."""
        if not self._sources:
            raise FetchError("Every source has failed in this run.", retry_after=float("inf"))
        waiting = list(self._sources)

        def following(error: FetchError | NotFoundError, _: int) -> Fetcher:
            if isinstance(error, FetchError):
                self._put_aside(self._last)
            elif path.startswith("metadata/"):
                raise error
            if not waiting:
                raise error
            self._last = waiting.pop(0)
            return self._last

        self._last = waiting.pop(0)
        yield from joined(self._last, following, path, start=start, limit=limit)

    def blame(self) -> bool:
        """Put the source of the last read aside: what it gave was wrong.

        Returns:
            Whether another source is left.
        """
        self._blamed.append(self._last)
        self._put_aside(self._last)
        return bool(self._sources)

    def take_back(self) -> None:
        """Ask those that were blamed again, for other files, where no source is left."""
        if self._blamed and not self._sources:
            self._sources = [source for source in self._all if source in self._blamed]
            self._last = self._sources[0]
            self._blamed.clear()

    def _put_aside(self, source: Fetcher) -> None:
        if source in self._sources:
            self._sources.remove(source)
        if self._sources:
            self._last = self._sources[0]
