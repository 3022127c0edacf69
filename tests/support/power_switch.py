"""Power cuts: the n-th change of a file fails, and so does every one after it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class PowerCut(BaseException):
    """The machine is off."""


class _Switch:
    def __init__(self) -> None:
        self.folder: str | None = None
        self.left = 0
        self.installed = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.folder is None or not self._changes(event, arguments):
            return
        if not str(arguments[0]).startswith(self.folder):
            return
        if self.left <= 0:
            raise PowerCut
        self.left -= 1

    def _changes(self, event: str, arguments: tuple[object, ...]) -> bool:
        if event == "open":
            return isinstance(arguments[2], int) and bool(arguments[2] & _WRITES)
        return event in _CHANGES


_SWITCH = _Switch()


@contextlib.contextmanager
def power_cut(folder: Path, *, after: int) -> Iterator[list[bool]]:
    """Let so many changes under a folder happen, and no more, while the context lasts.

    Gives a list that says at the end whether the power was cut.
    """
    if not _SWITCH.installed:
        sys.addaudithook(_SWITCH)
        _SWITCH.installed = True
    happened: list[bool] = []
    _SWITCH.folder, _SWITCH.left = str(folder), after
    try:
        yield happened
    except PowerCut:
        happened.append(True)
    finally:
        _SWITCH.folder = None
