"""Programs of the tools tree that `device-images/build` made, and what it built with them."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
CACHE = (ROOT / ".cache" / "image").resolve()
TOOLS = CACHE / "tools"
OUT = CACHE / "out"


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
