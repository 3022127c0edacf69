"""How a command ends: with a status, or with one message and one hint; never with a traceback."""

import os
import sys
from collections.abc import Callable

from outpost_runtime.errors import OutpostError


def ended(program: str, run: Callable[[], int]) -> int:
    """Run a command; returns its exit status.

    Args:
        program: Its name, before a message.
    """
    try:
        status = run()
        sys.stdout.flush()
    except OutpostError as error:
        _say(program, error.message, error.hint)
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "Name files and folders that this user may read and write."
        _say(program, f"{where}{error.strerror or error}.", hint)
        return 1
    return status


def _say(program: str, message: str, hint: str | None) -> None:
    sys.stderr.write(f"{program}: {message}\n")
    if hint:
        sys.stderr.write(f"  {hint}\n")
