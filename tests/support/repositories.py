"""A repository's files in memory, as a fetcher."""

from collections.abc import Iterator, Mapping

from outpost_runtime.errors import FetchError, NotFoundError


class FilesInMemory:
    """Keeps the contract of fetchers.

    Attributes:
        asked: Every path that was asked for, in order.
    """

    def __init__(self, files: Mapping[str, bytes], *, failing: bool = False) -> None:
        self._files = files
        self._failing = failing
        self.asked: list[str] = []

    @property
    def label(self) -> str:
        return "memory"

    def read(self, path: str, *, start: int = 0, limit: int) -> Iterator[bytes]:
        self.asked.append(path)
        if self._failing:
            raise FetchError("The source has failed.")
        if path not in self._files:
            raise NotFoundError(f"There is no {path}.")
        data = self._files[path]
        if len(data) > limit:
            raise FetchError(f"{path} is larger than {limit} bytes.")
        for place in range(start, len(data), 1 << 20):
            yield data[place : place + (1 << 20)]
