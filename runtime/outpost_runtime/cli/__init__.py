"""The command ``outpost``."""

_INTERRUPTED = 130


def run() -> int:
    """Run the command; returns the exit status.

    What it imports takes a second, in which somebody may interrupt it, too.
    """
    try:
        from outpost_runtime.cli.main import main  # noqa: PLC0415 - see above

        return main()
    except KeyboardInterrupt:
        return _INTERRUPTED
