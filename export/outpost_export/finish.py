"""What every build shares: a folder that nobody sees, the gate, the manifest.

A bundle is complete, measured and checked before it gets its final name; whatever
fails before that leaves nothing there.
"""

import errno
import fcntl
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from outpost_runtime import golden_file
from outpost_runtime.bundle import (
    FolderBundle,
    describe_file,
    read_bundle,
    sync_folder,
    write_manifest,
)
from outpost_runtime.manifest import Evidence, Manifest, Provenance

from outpost_export.errors import EvidenceError, ExportError, RecipeError
from outpost_export.gate import Miss, misses
from outpost_export.recipe import BLOCKS, COLUMNS, TENSOR_TASK, Recipe
from outpost_export.result import Built

_GOLDEN = "golden.safetensors"
_VERSIONED = ("onnx", "onnxruntime", "onnxruntime-genai", "optimum", "tokenizers", "torch",
              "transformers", "outpost-export", "outpost-runtime")  # fmt: skip
_SIGNIFICANT = 6
_INPUTS_THAT_FIT = (
    "Measure it on inputs that it is made for with --golden FILE, demand less in a recipe"
)
_ADVICE_ON_ONNX_FILES = {
    "repeat_difference": "Take the operators that draw random numbers out of the model"
}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What a bundle was made of.

    Attributes:
        source: SHA-256 by file name.
        adapter: The same; empty if there is none.
        measured_on: The text, or the encoded golden inputs.
        grid_of: Digest of the bundle on whose grid it was built; None: on its own.
    """

    source: dict[str, str]
    adapter: dict[str, str]
    measured_on: bytes
    grid_of: str | None = None


def check_output(out: Path, accept_worse: str | None) -> None:
    """Refuse an output that exists, and an exception without a reason.

    Raises:
        RecipeError: One of them.
    """
    if accept_worse is not None and not accept_worse.strip():
        raise RecipeError("--accept-worse needs a reason.", hint="Say why, in a few words.")
    if out.exists():
        raise RecipeError(f"{out} exists already.", hint="Remove it, or choose another --out.")


@contextmanager
def hidden_folder(out: Path) -> Iterator[Path]:
    """Make a folder beside the output that is gone when the context ends.

    Raises:
        RecipeError: There can be no folder.
        ExportError: The disk failed while the context lasted.
    """
    prefix = f".{out.name}.partial-"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in out.parent.glob(f"{prefix}*"):
            _remove_if_abandoned(leftover)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        claim = os.open(folder, os.O_RDONLY)
        fcntl.flock(claim, fcntl.LOCK_EX)
    except OSError as error:
        raise RecipeError(f"{out.parent} cannot be written: {error.strerror}.") from error
    try:
        yield folder
    except OSError as error:
        hint = "Free some space, then build again." if error.errno == errno.ENOSPC else None
        raise ExportError(f"The build failed: {error}.", hint=hint) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(claim)


def _remove_if_abandoned(folder: Path) -> None:
    # A build that was killed left it; one that still runs holds its lock.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        _LOG.info("another build of the same bundle is running")
    finally:
        os.close(descriptor)


def finish(
    folder: Path, built: Built, recipe: Recipe, origin: Origin, accept_worse: str | None
) -> FolderBundle:
    """Pass the gate; then complete a folder of files with golden file and manifest.

    Raises:
        EvidenceError: The build is worse than its recipe allows.
    """
    missed = misses(built.figures, recipe.thresholds)
    if missed and accept_worse is None:
        raise EvidenceError(
            f"The {recipe.target} build is not good enough: {'; '.join(map(str, missed))}.",
            hint=_advice(recipe, missed, origin),
        )
    golden_file.save(folder / _GOLDEN, built.golden)
    accepted = accept_worse if missed else None
    return write_manifest(folder, _manifest(folder, built, recipe, origin, accepted))


def publish(bundle: FolderBundle, out: Path) -> FolderBundle:
    """Give a finished bundle its final name."""
    bundle.folder.replace(out)
    sync_folder(out.parent)
    return read_bundle(out)


def _advice(recipe: Recipe, missed: list[Miss], origin: Origin) -> str:
    accept = "or record an exception with --accept-worse REASON"
    if origin.grid_of is not None:
        return f"Build it on a fresh grid, without --on-grid-of; its update is larger; {accept}."
    if recipe.task == TENSOR_TASK:
        return f"{_ADVICE_ON_ONNX_FILES.get(missed[0].figure, _INPUTS_THAT_FIT)}, {accept}."
    if recipe.bits is None:
        return f"The graph does not compute what the checkpoint does: report this, {accept}."
    better = "cpu-int8" if recipe.target == "cpu-int4" else "cpu-fp32"
    figure = missed[0].figure
    finer = f"a block_size below {recipe.block_size}"
    if recipe.scales == COLUMNS:
        finer = f'scales = "{BLOCKS}" in the recipe'
    return f"Try --target {better}, {finer}, another threshold for {figure}, {accept}."


def _manifest(
    folder: Path, built: Built, recipe: Recipe, origin: Origin, accepted: str | None
) -> Manifest:
    paths = sorted(folder.iterdir())
    for path in paths:
        path.chmod(0o644)  # some libraries write files that only their owner may read
    return Manifest(
        name=recipe.name,
        version=recipe.version,
        task=str(recipe.task),
        target=recipe.target,
        files={path.name: describe_file(path) for path in paths},
        interface=built.interface,
        memory_bytes=built.memory_bytes,
        evidence=Evidence(
            figures={name: _rounded(value) for name, value in sorted(built.figures.items())},
            thresholds=dict(sorted(recipe.thresholds.items())),
            accepted_worse=accepted,
            golden=_GOLDEN,
            tolerances=built.tolerances,
        ),
        licence=str(recipe.licence),
        provenance=Provenance(
            source=origin.source,
            adapter=origin.adapter,
            recipe=asdict(recipe),
            recipe_sha256=recipe.sha256,
            evaluation_sha256=hashlib.sha256(origin.measured_on).hexdigest(),
            versions=_versions(),
            grid_of=origin.grid_of,
        ),
    )


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _VERSIONED}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def _rounded(value: float) -> float:
    # The last bits of a float depend on how threads shared the sum; a manifest must not.
    return float(f"{round(value, 6):.{_SIGNIFICANT}g}")
