"""Programs of the tools tree that `device-images/build` made, and what it built with them."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
CACHE = (ROOT / ".cache" / "image").resolve()
TOOLS = CACHE / "tools"
OUT = CACHE / "out"


def kernel(version: int, extra: Path | None = None) -> Path:
    """Return the kernel image of a version of x86-generic, built if it is older than version 1.

    Args:
        extra: A folder of files that are in this version only.
    """
    more = [] if extra is None else ["--extra", extra]
    return _built(OUT / "x86-generic" / f"outpost_{version}.efi", "--version", version, *more)


def container() -> Path:
    """Return the container's image, an OCI layout, built if it is older than the disk's."""
    return _built(OUT / "container" / "outpost-container_1", "--profile", "container")


def _built(output: Path, *options: object) -> Path:
    first = OUT / "x86-generic" / "outpost_1.efi"
    if not output.exists() or output.stat().st_mtime < first.stat().st_mtime:
        command = [str(ROOT / "device-images" / "build"), *map(str, options)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return output


def inside(folder: Path, *command: object) -> list[str]:
    """Return a command that runs in the tools tree, in a folder of this machine."""
    root = ["bwrap", "--bind", TOOLS, "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc"]
    root += ["--ro-bind", "/sys", "/sys", "--bind", "/tmp", "/tmp"]  # noqa: S108 - for sockets
    root += ["--bind", folder, "/mnt", "--chdir", "/mnt", "--die-with-parent"]
    return [str(word) for word in (*root, *command)]


def run(folder: Path, *command: object) -> str:
    """Run a program of the tools tree; returns what it wrote."""
    done = subprocess.run(
        inside(folder, *command), check=True, capture_output=True, text=True, timeout=300
    )
    return done.stdout
