"""A stick with the label OUTPOST: a FAT file system in a file."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.metal.tools import inside, run

_SIZE = 64 << 20


class Stick:
    """The file; what lies on it can be read and written while no box has it."""

    def __init__(self, path: Path, files: Mapping[str, str | Path] | None = None) -> None:
        self.path = path
        with path.open("wb") as file:
            file.truncate(_SIZE)
        run(path.parent, "mkfs.vfat", "-n", "OUTPOST", path.name)
        for name, content in (files or {}).items():
            self.write(name, content)

    def write(self, name: str, content: str | Path) -> None:
        """Put a file or a folder on it."""
        for parent in reversed(Path(name).parents[:-1]):
            made = inside(self.path.parent, "mmd", "-i", self.path.name, f"::{parent}")
            subprocess.run(made, check=False, capture_output=True, stdin=subprocess.DEVNULL)
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            source = Path(folder) / Path(name).name
            if isinstance(content, Path) and content.is_dir():
                shutil.copytree(content, source)
            else:
                data = content.encode() if isinstance(content, str) else content.read_bytes()
                source.write_bytes(data)
            inner = f"{Path(folder).name}/{source.name}"
            run(self.path.parent, "mcopy", "-s", "-o", "-i", self.path.name, inner, f"::{name}")

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder of the stick."""
        listing = run(self.path.parent, "mdir", "-b", "-i", self.path.name, f"::{folder}")
        return [line.rsplit("/", 1)[-1] for line in listing.split()]

    def read(self, name: str) -> str:
        """Return a file's text."""
        return run(self.path.parent, "mtype", "-i", self.path.name, f"::{name}")
