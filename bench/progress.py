"""What a long measurement says while it runs."""

import sys
import time


def say(text: str) -> None:
    """Write a line and the time of day to standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
