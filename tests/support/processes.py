"""Processes that a test watches from outside."""

from pathlib import Path


def children_of(number: int) -> list[int]:
    """Return the process numbers of a process's children; none where it has ended."""
    try:
        threads = list(Path(f"/proc/{number}/task").iterdir())
        return [int(n) for thread in threads for n in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def private_bytes_of(number: int) -> int:
    """Return the bytes that a process shares with nobody."""
    for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"the kernel does not say it of {number}")
