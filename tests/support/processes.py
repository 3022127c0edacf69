"""Processes that a test watches from outside."""

from pathlib import Path


def children_of(number: int) -> list[int]:
    """Return the process numbers of a process's children; none where it has ended."""
    try:
        threads = list(Path(f"/proc/{number}/task").iterdir())
        return [int(n) for thread in threads for n in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
