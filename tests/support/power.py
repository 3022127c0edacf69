"""Power cuts: a process that ends between two changes of the disk, without a chance to tidy up."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CUT = 86
_OPEN = os.open
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def cuts_of(act: Callable[[], object]) -> int:
    """Do something and return how many changes of the disk it makes: places to be cut at."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    undo = _before_every_change(step)
    try:
        act()
    finally:
        undo()
    return count


def cut_at(number: int, act: Callable[[], object]) -> bool:
    """Do something in a child process that is gone before its ``number``-th change (from 0).

    Returns:
        Whether it got that far.
    """
    child = os.fork()
    if child == 0:
        _live_until(number, act)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, _CUT):
        raise AssertionError(f"the child ended with {code}")
    return code == _CUT


def _live_until(number: int, act: Callable[[], object]) -> None:
    left = number

    def step() -> None:
        nonlocal left
        if left == 0:
            os._exit(_CUT)
        left -= 1

    try:
        _before_every_change(step)
        act()
        os._exit(0)
    finally:
        os._exit(1)


def _before_every_change(step: Callable[[], None]) -> Callable[[], None]:
    """Call ``step`` before everything that changes a folder or makes a write durable."""
    places: list[tuple[Any, str]] = [
        (Path, "mkdir"), (Path, "replace"), (Path, "unlink"), (Path, "rename"),
        (os, "open"), (os, "fsync"), (os, "replace"),
    ]  # fmt: skip
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, real in kept:
        setattr(owner, name, _stepping(step, real))

    def undo() -> None:
        for owner, name, real in kept:
            setattr(owner, name, real)

    return undo


def _stepping(step: Callable[[], None], real: Callable[..., Any]) -> Callable[..., Any]:
    def stepping(*arguments: Any, **options: Any) -> Any:
        if real is not _OPEN or arguments[1] & _WRITES:  # to read changes nothing
            step()
        return real(*arguments, **options)

    return stepping
