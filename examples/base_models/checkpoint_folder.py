"""A checkpoint folder appears whole or not at all.

The folder is written beside its final place under a temporary name and renamed when every
file is there. A folder that exists under its final name is therefore complete, and making it
again costs nothing.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

Writer = Callable[[Path], None]


def say(text: str) -> None:
    """Write one line of progress to standard error."""
    sys.stderr.write(f"{text}\n")


def make_checkpoint_folder(folder: Path, write: Writer, *, expected: frozenset[str]) -> bool:
    """Make `folder` with `write`, unless all `expected` file names are in it already.

    Returns:
        Whether anything had to be written.

    Raises:
        FileExistsError: `folder` exists and lacks one of the expected files.
    """
    if folder.exists():
        _refuse_incomplete(folder, expected)
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        unfinished = Path(scratch) / "unfinished"
        unfinished.mkdir()
        write(unfinished)
        _refuse_incomplete(unfinished, expected)
        _sync(unfinished)
        unfinished.replace(folder)
    return True


def make_from_command_line(write: Writer, *, expected: frozenset[str], about: str) -> int:
    """Be the `python -m … OUT_DIR` command of one model."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "folder", type=Path, metavar="OUT_DIR", help="where the checkpoint folder goes"
    )
    folder: Path = parser.parse_args().folder.absolute()
    try:
        written = make_checkpoint_folder(folder, write, expected=expected)
    except (OSError, ValueError) as error:
        say(f"error: {error}")
        return 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    say(f"{folder}: {'written' if written else 'already complete'}, {size / 1e6:.0f} MB")
    return 0


def copy_stream_to(path: Path, source: IO[bytes]) -> None:
    """Copy an open binary stream into a new file."""
    with path.open("xb") as target:
        shutil.copyfileobj(source, target, length=1 << 20)


def _refuse_incomplete(folder: Path, expected: frozenset[str]) -> None:
    missing = sorted(name for name in expected if not (folder / name).is_file())
    if missing:
        raise FileExistsError(
            f"{folder} exists but lacks {', '.join(missing)}; remove it and start again."
        )


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
