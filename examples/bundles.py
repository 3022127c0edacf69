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

_SHAPING = ("export/outpost_export", "runtime/outpost_runtime", "examples/base_models")
"""Folders whose change may change a bundle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """What a bundle is built from.

    Attributes:
        base: Module of `examples.base_models` that writes the checkpoint.
        options: Of `outpost-export build`, beside source, target and output.
        files: What these options name; a change of theirs builds the bundle again.
    """

    base: str
    options: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


EXAMPLES = {
    "all-minilm-l6-v2": Example(base="all_minilm_l6_v2"),
    "gemma-3-270m": Example(base="gemma3_270m"),
    "press-line": Example(
        base="gemma3_270m",
        options=(
            *("--adapter", "examples/press_line/adapter"),
            *("--eval", "examples/press_line/evaluation.jsonl"),
            *("--recipe", "examples/press_line/recipe.toml"),
        ),
        files=(ADAPTER, PRESS_LINE / "evaluation.jsonl", PRESS_LINE / "recipe.toml"),
    ),
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
        source = checkpoint(example.base)
        arguments = [source.relative_to(ROOT), "--target", target, "--out", out.relative_to(ROOT)]
        run("outpost-export", "build", *arguments, "--name", name, *example.options, *more)
    return out


def checkpoint(base: str) -> Path:
    """Return the folder of a base checkpoint, written if it is not there yet."""
    folder = CACHE / "models" / base
    if not folder.is_dir():
        run("python", "-m", f"examples.base_models.{base}", folder.relative_to(ROOT))
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
    for folder in _SHAPING:
        yield from sorted((ROOT / folder).rglob("*.py"))
    for path in example.files:
        yield from sorted(path.rglob("*")) if path.is_dir() else (path,)
