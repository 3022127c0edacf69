"""What an ONNX file is measured on: inputs that a user brings, or ones made up for its signature.

Made-up inputs, always the same for the same signature:

1. Free dimensions of the same name have one size; those without a name share theirs with the
   others without a name at their position. A recipe's ``dimensions`` fix sizes by name.
2. Floating-point numbers are drawn from the standard normal distribution, small integers
   (8 and 16 bits) from 0 to 127; truth values at random; texts are short words.
3. Larger integers may be indices, masks or lengths, so they are 0 or 1, and the first of
   every row is 1: every table has such rows, no mask hides everything, no length is zero.
4. Many models take certain sizes only. Sizes are tried in turn until enough inputs were
   answered; small ones, multiples of 32, and images that are wider than high are among them.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np
from outpost_runtime.errors import ExecutionError, InvalidInputError, OutpostError
from outpost_runtime.golden_file import load
from outpost_runtime.sessions import Session
from outpost_runtime.tensors import Array, TensorSpec, check_feeds

from outpost_export.errors import ConversionError, RecipeError
from outpost_export.onnx_source import Size

CASES = 3
"""How many inputs are made up for a model."""

HINT_GOLDEN = "Give inputs that it is made for with --golden FILE; see 'build --help'."

Feeds = dict[str, Array]
Run = Callable[[Feeds], object]

_SUFFIXES = (".npz", ".safetensors")
_CASE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_LARGEST_FILE = 256 << 20
_MOST_CASES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """Sizes of free dimensions: of the first, of the others, of every second of the others."""

    first: int
    others: int
    second: int


_PLANS = (
    _Plan(first=1, others=8, second=8),
    _Plan(first=2, others=3, second=5),
    _Plan(first=3, others=16, second=16),
    _Plan(first=1, others=32, second=64),
    _Plan(first=2, others=64, second=64),
    _Plan(first=1, others=128, second=128),
    _Plan(first=1, others=1, second=1),
    _Plan(first=1, others=2, second=2),
    _Plan(first=1, others=224, second=224),
    _Plan(first=1, others=256, second=256),
    _Plan(first=1, others=512, second=512),
    _Plan(first=1, others=640, second=640),
    _Plan(first=8, others=8, second=8),
    _Plan(first=16, others=16, second=16),
    _Plan(first=32, others=32, second=32),
    _Plan(first=64, others=64, second=64),
    _Plan(first=128, others=128, second=128),
)


def read_inputs(path: Path, specs: tuple[TensorSpec, ...]) -> list[Feeds]:
    """Read inputs that a user brings: tensors named ``<case>/<input>``, in the order of the cases.

    Args:
        path: A ``.npz`` or ``.safetensors`` file; texts are numpy's ``S`` or ``U`` in the first.
        specs: What the model expects; states are made by running it.

    Raises:
        RecipeError: It is no such file, or a case does not fit the model.
    """
    cases: dict[str, Feeds] = {}
    for key, array in _read_tensors(path).items():
        case, slash, name = key.partition("/")
        if not slash or not _CASE.fullmatch(case):
            raise RecipeError(
                f"{path} has a tensor named '{key}'.", hint="Names are CASE/INPUT, such as 0/x."
            )
        cases.setdefault(case, {})[name] = array
    if not 1 <= len(cases) <= _MOST_CASES:
        raise RecipeError(f"{path} has {len(cases)} cases; 1 to {_MOST_CASES} are needed.")
    for case, feeds in cases.items():
        try:
            check_feeds(specs, feeds)
        except InvalidInputError as error:
            raise RecipeError(f"Case '{case}' of {path}: {error.message}") from error
    return [cases[case] for case in sorted(cases, key=_natural)]


def make_inputs(
    specs: tuple[TensorSpec, ...],
    sizes: Mapping[str, tuple[Size, ...]],
    fixed: Mapping[str, int],
    run: Run,
    *,
    most_sizes: int = CASES,
) -> list[Feeds]:
    """Make up inputs that the model answers.

    Args:
        specs: What the model expects; states are made up elsewhere.
        sizes: Of all its inputs' dimensions; see :class:`OnnxSource`.
        fixed: Sizes of named free dimensions.
        run: Runs the model once.
        most_sizes: How many different sizes of the same dimension the inputs may have.

    Raises:
        RecipeError: ``fixed`` names a dimension that the model does not have.
        ConversionError: The model answers none of what was tried.
    """
    _check_names(sizes, fixed)
    usable: list[_Plan] = []
    reason: OutpostError | None = None
    for plan in _PLANS:
        try:
            run(_fill(specs, sizes, fixed, plan, seed=0))
        except (InvalidInputError, ExecutionError) as error:
            reason = reason or error
            continue
        usable.append(plan)
        if len(usable) == most_sizes or not _free(sizes, fixed):
            break
    if not usable:
        why = reason.message if reason else "no sizes were tried"
        raise ConversionError(
            f"No inputs could be made up that the model answers: {why}", hint=HINT_GOLDEN
        )
    turns = islice(zip(cycle(usable), count(), strict=False), CASES)
    return [_fill(specs, sizes, fixed, plan, seed=seed) for plan, seed in turns]


def answer(session: Session, feeds: Feeds) -> dict[str, Array]:
    """Run a model on inputs that it should answer.

    Raises:
        ConversionError: It does not.
    """
    try:
        return session.run(feeds)
    except OutpostError as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise ConversionError(
            f"The model does not answer inputs of {shapes}: {error.message}", hint=HINT_GOLDEN
        ) from error


def _natural(case: str) -> str:
    return re.sub(r"\d+", lambda number: number[0].zfill(20), case)  # 10 after 9


def _read_tensors(path: Path) -> dict[str, Array]:
    if path.suffix not in _SUFFIXES:
        raise RecipeError(f"{path} is no {' or '.join(_SUFFIXES)} file.")
    try:
        if path.suffix == ".safetensors":
            _check_size(path, path.stat().st_size)
            return load(path)
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(entry.file_size for entry in archive.infolist()))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _texts_as_bytes(arrays[name]) for name in arrays.files}
    except RecipeError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, OutpostError) as error:
        raise RecipeError(f"{path} cannot be read: {error}.") from error


def _check_size(path: Path, size: int) -> None:
    if size > _LARGEST_FILE:
        raise RecipeError(f"{path} holds more than {_LARGEST_FILE >> 20} MiB of tensors.")


def _texts_as_bytes(array: Array) -> Array:
    if array.dtype.kind not in "SU":
        return array
    texts = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array
    return texts.astype(np.object_)


def _check_names(sizes: Mapping[str, tuple[Size, ...]], fixed: Mapping[str, int]) -> None:
    known = sorted({s for dimensions in sizes.values() for s in dimensions if isinstance(s, str)})
    for name in fixed:
        if name not in known:
            raise RecipeError(
                f"The recipe gives a size to '{name}', which is no free dimension of the model.",
                hint=f"Those with a name: {', '.join(known) or 'none'}.",
            )


def _free(sizes: Mapping[str, tuple[Size, ...]], fixed: Mapping[str, int]) -> bool:
    every = (size for dimensions in sizes.values() for size in dimensions)
    return any(not isinstance(size, int) and size not in fixed for size in every)


def _fill(
    specs: tuple[TensorSpec, ...],
    sizes: Mapping[str, tuple[Size, ...]],
    fixed: Mapping[str, int],
    plan: _Plan,
    *,
    seed: int,
) -> Feeds:
    random = np.random.default_rng(seed)
    chosen: dict[str | int, int] = dict(_chosen(sizes, plan))
    chosen.update(fixed)
    feeds = {}
    for spec in specs:
        shape = tuple(
            size if isinstance(size, int) else chosen[size or axis]
            for axis, size in enumerate(sizes[spec.name])
        )
        feeds[spec.name] = _values(random, spec, shape)
    return feeds


def _chosen(sizes: Mapping[str, tuple[Size, ...]], plan: _Plan) -> Iterator[tuple[str | int, int]]:
    """Yield a size for every free dimension, by its name or else by its position."""
    others = cycle((plan.others, plan.second))
    seen: set[str | int] = set()
    for axis, size in sorted(
        ((axis, size) for dimensions in sizes.values() for axis, size in enumerate(dimensions)),
        key=lambda pair: pair[0],
    ):
        key = axis if size is None else size
        if isinstance(size, int) or key in seen:
            continue
        seen.add(key)
        yield key, plan.first if axis == 0 else next(others)


def _values(random: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype == "BYTES":
        letters = random.integers(ord("a"), ord("z") + 1, (*shape, 4), np.uint8)
        return np.ascontiguousarray(letters).view("S4")[..., 0].astype(np.object_)
    if spec.datatype == "BOOL":
        return np.asarray(random.random(shape) < 0.5)  # noqa: PLR2004 - as often as not
    if spec.datatype in ("INT8", "UINT8", "INT16", "UINT16"):
        return np.asarray(random.integers(0, 128, shape)).astype(spec.dtype)
    if spec.datatype.startswith(("INT", "UINT")):
        values = np.asarray(random.integers(0, 2, shape))
        values[(..., slice(1)) if shape else ...] = 1
        return values.astype(spec.dtype)
    return np.asarray(random.standard_normal(shape)).astype(spec.dtype)
