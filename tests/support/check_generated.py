"""Compare the committed protobuf code with a fresh generation."""

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).parents[2] / "proto"


def main() -> int:
    """Name the files that differ; returns the exit status."""
    folders = ("outpost", "inference")  # not build/, where pip leaves copies
    sources = sorted(str(path) for folder in folders for path in (PROTO / folder).rglob("*.proto"))
    with tempfile.TemporaryDirectory() as fresh:
        outputs = [f"--{kind}_out={fresh}" for kind in ("python", "grpc_python")]
        outputs += [f"--{kind}_out=quiet:{fresh}" for kind in ("mypy", "mypy_grpc")]
        plugins = [f"--plugin={path}" for path in Path(sys.executable).parent.glob("protoc-gen-*")]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *plugins, *outputs]
        subprocess.run([*command, *sources], check=True)
        names = [path.relative_to(fresh) for path in Path(fresh).rglob("*.py*")]
        differing = [
            str(name)
            for name in names
            if not (PROTO / name).is_file()
            or not filecmp.cmp(PROTO / name, Path(fresh) / name, shallow=False)
        ]
    if differing or not names:
        sys.stderr.write(f"Generated code is stale, run 'make proto': {', '.join(differing)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
