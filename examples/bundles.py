"""The examples' bundles, built once and kept in .cache/ until something that shapes them changes.

`path_of("press-line", "cpu-int8")` returns the folder of a bundle, building what is missing:
base checkpoint, merged fine-tune, export with evidence. Demo, tests and bench all use it.
"""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"
PRESS_LINE = ROOT / "examples" / "press_line"
ADAPTER = PRESS_LINE / "adapter"

_RUNTIME = "runtime/outpost_runtime"
_SHAPING = (
    "export/outpost_export",
    "examples/base_models",
    *(f"{_RUNTIME}/{name}.py" for name in ("documents", "golden", "golden_file", "interface")),
    *(f"{_RUNTIME}/{name}.py" for name in ("manifest", "tensors", "tokenizer")),
    f"{_RUNTIME}/sessions",
    *(f"{_RUNTIME}/text/{name}.py" for name in ("adapters", "adapter_session", "chat")),
    *(f"{_RUNTIME}/text/{name}.py" for name in ("decoder", "sampler", "scoring")),
)
"""What may change a bundle or its figures; how it is served may not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """What a bundle is built from.

    Attributes:
        base: Module of `examples.base_models` that writes the checkpoint.
        part: What that module writes, where it writes several things.
        options: Of the build command, beside source, target and output.
        files: What these options name; a change of theirs builds the bundle again.
        adapter_of: For an adapter's bundle, the example that is its base.
    """

    base: str
    part: str | None = None
    options: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    adapter_of: str | None = None


_MEASURED_ON_THE_PRESS_LINE = ("--eval", "examples/press_line/evaluation.jsonl")
_ONNX = "onnx_models"
_MODELS = ".cache/models"
_RECIPE = ("--recipe", "examples/press_line/recipe.toml")
_FILES = (ADAPTER, PRESS_LINE / "evaluation.jsonl", PRESS_LINE / "recipe.toml")

EXAMPLES = {
    "all-minilm-l6-v2": Example(base="all_minilm_l6_v2"),
    "gemma-3-270m": Example(base="gemma3_270m", options=("--adapter-rank", "16")),
    "press-line": Example(
        base="gemma3_270m",
        options=(
            *("--adapter", "examples/press_line/adapter"),
            *_MEASURED_ON_THE_PRESS_LINE,
            *_RECIPE,
        ),
        files=_FILES,
    ),
    "press-line-adapter": Example(
        base="gemma3_270m",
        options=_MEASURED_ON_THE_PRESS_LINE,
        files=_FILES,
        adapter_of="gemma-3-270m",
    ),
    **{
        name: Example(base=_ONNX, part=name, options=("--recipe", f"{_MODELS}/{name}/recipe.toml"))
        for name in ("pp-ocr-det", "pp-ocr-rec")
    },
    **{
        name: Example(
            base=_ONNX,
            part=name,
            options=(
                *("--recipe", f"{_MODELS}/{name}/recipe.toml"),
                *("--golden", f"{_MODELS}/{name}/golden.npz"),
            ),
        )
        for name in ("silero-vad", "magika")
    },
}


def path_of(name: str, target: str, *more: str) -> Path:
    """Return the folder of an example's bundle, built if it is not there yet.

    Args:
        name: A key of `EXAMPLES`.
        target: A target of the exporter.
        more: Options of `outpost-export build`, such as `--accept-worse`.

    Raises:
        subprocess.CalledProcessError: A command failed; it has said why.
    """
    example = EXAMPLES[name]
    out = CACHE / "bundles" / f"{name}-{target}-{_fingerprint(example, more)}"
    if not out.is_dir():
        source = _source(example).relative_to(ROOT)
        if example.adapter_of is None:
            command = ["build", source, "--target", target]
        else:
            base = path_of(example.adapter_of, target).relative_to(ROOT)
            command = ["build-adapter", ADAPTER.relative_to(ROOT), "--base", base]
            command += ["--source", source]
        named = ["--out", out.relative_to(ROOT), "--name", name]
        run("outpost-export", *command, *named, *example.options, *more)
    return out


def checkpoint(base: str, part: str | None = None) -> Path:
    """Return the folder of a base checkpoint, written if it is not there yet."""
    folder = CACHE / "models" / (part or base)
    if not folder.is_dir():
        named = () if part is None else (part,)
        run("python", "-m", f"examples.base_models.{base}", *named, folder.relative_to(ROOT))
    return folder


def run(command: str, *arguments: object) -> None:
    """Show a command as a user would type it, and run it from the repository's root.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    words = [str(argument) for argument in arguments]
    sys.stdout.write(f"\n$ {command} {' '.join(map(_quoted, words))}\n")
    sys.stdout.flush()
    subprocess.run([executable(command), *words], check=True, cwd=ROOT)  # noqa: S603 - our own


def _source(example: Example) -> Path:
    folder = checkpoint(example.base, example.part)
    file = folder / "model.onnx"
    return file if file.is_file() else folder


def executable(command: str) -> str:
    """Return where a command of this environment lies."""
    return str(Path(sys.executable).with_name(command))


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word


def _fingerprint(example: Example, more: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((example.options, more)).encode())
    for path in _shaping_files(example):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _shaping_files(example: Example) -> Iterator[Path]:
    yield ROOT / "requirements.lock"
    for name in _SHAPING:
        path = ROOT / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else (path,)
    for path in example.files:
        yield from sorted(path.rglob("*")) if path.is_dir() else (path,)
