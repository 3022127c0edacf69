"""How a build tells what it is doing: long steps show that they move."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Advance = Callable[[int], None]


class Reporter(Protocol):
    """Someone who watches a build."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Announce a step of ``total`` units (None: unknown) while the context lasts."""


class SilentReporter:
    """Nobody watches."""

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Advance]:  # noqa: ARG002
        """See :class:`Reporter`."""
        yield lambda _: None


class ConsoleReporter:
    """Shows a bar for every step, and leaves one line of each."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """See :class:`Reporter`."""
        columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description:<44}"))
        with Progress(*columns, BarColumn(), TimeElapsedColumn(), console=self._console) as bars:
            task = bars.add_task(title, total=total)
            yield lambda count: bars.advance(task, count)
            bars.update(task, total=total or 1, completed=total or 1)
