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
ADAPTER_2 = PRESS_LINE / "adapter_2"

_RUNTIME = "runtime/outpost_runtime"
_SHAPING = (
    "export/outpost_export",
    "examples/base_models",
    *(f"{_RUNTIME}/{name}.py" for name in ("documents", "golden", "golden_file", "interface")),
    *(f"{_RUNTIME}/{name}.py" for name in ("manifest", "tensors", "tokenizer")),
    f"{_RUNTIME}/sessions",
    *(f"{_RUNTIME}/text/{name}.py" for name in ("adapters", "adapter_session", "chat")),
    *(f"{_RUNTIME}/text/{name}.py" for name in ("decoder", "sampler", "scoring", "token_table")),
)
"""What may change a bundle or its figures; how it is published and served may not."""

_PUBLISHING = "publishing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """What a bundle is built from.

    Attributes:
        base: Module of `examples` that writes the checkpoint; without a point of
            `examples.base_models`.
        part: What that module writes, where it writes several things.
        options: Of the build command, beside source, target and output.
        files: What these options name; a change of theirs builds the bundle again.
        name: Of the model; None: that of the example.
        adapter: Of the fine-tune.
        adapter_of: For an adapter's bundle, the example that is its base.
        grid_of: The example whose scales it is quantized with; None: its own.
    """

    base: str
    part: str | None = None
    options: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    name: str | None = None
    adapter: Path | None = None
    adapter_of: str | None = None
    grid_of: str | None = None


_ONNX = "onnx_models"
_MODELS = ".cache/models"
_FULL_FINETUNE = "press_line.full_finetune"
_MEASURED_ON = PRESS_LINE / "evaluation.jsonl"
_RECIPE = PRESS_LINE / "recipe.toml"
_SCREENED = ROOT / "examples" / "base_models" / "screened.toml"


def _press_line(
    adapter: Path, *, adapter_of: str | None = None, grid_of: str | None = None
) -> Example:
    """Return a fine-tune of the press line: merged, or as an adapter of a base's bundle."""
    version = ("--version", "2") if adapter is ADAPTER_2 else ()
    recipe = ("--recipe", "examples/press_line/recipe.toml") if adapter_of is None else ()
    return Example(
        base="gemma3_270m",
        options=("--eval", "examples/press_line/evaluation.jsonl", *recipe, *version),
        files=(adapter, _MEASURED_ON, _RECIPE),
        name="press-line" if adapter_of is None else "press-line-adapter",
        adapter=adapter,
        adapter_of=adapter_of,
        grid_of=grid_of,
    )


def _all_weights(grid_of: str | None = None) -> Example:
    """Return the fine-tune of the press line that has trained every weight."""
    return Example(
        base=_FULL_FINETUNE,
        options=(
            *("--eval", "examples/press_line/evaluation.jsonl"),
            *("--recipe", "examples/press_line/recipe.toml"),
        ),
        files=(PRESS_LINE / "full_finetune.py", _MEASURED_ON, _RECIPE),
        name="press-line",
        grid_of=grid_of,
    )


EXAMPLES = {
    "all-minilm-l6-v2": Example(base="all_minilm_l6_v2"),
    "gemma-3-270m": Example(base="gemma3_270m", options=("--adapter-rank", "16")),
    "gemma-3-270m-screened": Example(
        base="gemma3_270m",
        options=("--recipe", "examples/base_models/screened.toml"),
        files=(_SCREENED,),
    ),
    "press-line": _press_line(ADAPTER),
    "press-line-2": _press_line(ADAPTER_2, grid_of="press-line"),
    "press-line-adapter": _press_line(ADAPTER, adapter_of="gemma-3-270m"),
    "press-line-2-adapter": _press_line(ADAPTER_2, adapter_of="gemma-3-270m"),
    # Beside these, what bench/update_sizes.py compares: a base from the fine-tunes' recipe, the
    # first fine-tune on its grid, the second on a fresh one, and one of all weights.
    "base-of-press-line": Example(
        base="gemma3_270m",
        options=("--recipe", "examples/press_line/recipe.toml", "--version", "0"),
        files=(_RECIPE,),
        name="press-line",  # an update is from one version to another of the same name
    ),
    "press-line-on-base": _press_line(ADAPTER, grid_of="base-of-press-line"),
    "press-line-2-fresh": _press_line(ADAPTER_2),
    "press-line-full": _all_weights(),
    "press-line-full-on-base": _all_weights(grid_of="base-of-press-line"),
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
        command, *options = _command(example, target, more)
        named = ["--out", out.relative_to(ROOT), "--name", example.name or name]
        run("outpost-export", command, *options, *named, *example.options, *more)
    return out


def _command(example: Example, target: str, more: tuple[str, ...]) -> Iterator[object]:
    source = _source(example).relative_to(ROOT)
    adapter = () if example.adapter is None else (example.adapter.relative_to(ROOT),)
    if example.adapter_of is not None:
        base = path_of(example.adapter_of, target).relative_to(ROOT)
        yield from ("build-adapter", *adapter, "--base", base, "--source", source)
        return
    yield from ("build", source, "--target", target)
    if adapter:
        yield from ("--adapter", *adapter)
    if example.grid_of is not None:
        yield from ("--on-grid-of", path_of(example.grid_of, target, *more).relative_to(ROOT))


def checkpoint(base: str, part: str | None = None) -> Path:
    """Return the folder of a base checkpoint, written if it is not there yet."""
    folder = CACHE / "models" / (part or base)
    if not folder.is_dir():
        named = () if part is None else (part,)
        module = base if "." in base else f"base_models.{base}"
        run("python", "-m", f"examples.{module}", *named, folder.relative_to(ROOT))
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
    if example.grid_of is not None:
        digest.update(_fingerprint(EXAMPLES[example.grid_of], more).encode())
    for path in _shaping_files(example):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _shaping_files(example: Example) -> Iterator[Path]:
    yield ROOT / "requirements.lock"
    for name in _SHAPING:
        path = ROOT / name
        found = sorted(path.rglob("*.py")) if path.is_dir() else (path,)
        yield from (file for file in found if _PUBLISHING not in file.parts)
    for path in example.files:
        yield from sorted(path.rglob("*")) if path.is_dir() else (path,)
