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
    first, built = (OUT / "x86-generic" / f"outpost_{number}.efi" for number in (1, version))
    if not built.exists() or built.stat().st_mtime < first.stat().st_mtime:
        command = [ROOT / "device-images" / "build", "--version", str(version)]
        more = [] if extra is None else ["--extra", extra]
        subprocess.run([*command, *more], check=True, stdin=subprocess.DEVNULL)
    return built


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
