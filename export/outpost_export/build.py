"""From a source and a recipe to a bundle, or to nothing at all.

1. Check the source; merge the adapter, if there is one.
2. Write graph, tokenizer and template into a hidden folder beside the output.
3. Measure the graph against the source, through the runtime.
4. Pass the gate, or fail and leave nothing under the final name.
5. Write golden file and manifest.
6. Open the finished bundle as a device would, and run its golden inputs.
7. Rename the folder to its final name.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from outpost_runtime import golden
from outpost_runtime.bundle import Bundle, describe_file, sync_folder, write_manifest
from outpost_runtime.manifest import Evidence, Manifest, Provenance
from outpost_runtime.models import open_model

from outpost_export import adapter as lora
from outpost_export.decoder_build import Text, build_decoder
from outpost_export.encoder_build import build_encoder
from outpost_export.errors import EvidenceError, ExportError, RecipeError
from outpost_export.evaluation import DIALOGUES_SUFFIX, read_evaluation
from outpost_export.gate import Miss, misses
from outpost_export.progress import Reporter
from outpost_export.recipe import CLASSIFIER_TASKS, DECODER_TASK, EMBEDDING_TASK, Recipe
from outpost_export.result import Built, Finished
from outpost_export.source import Source, digests_of, licence_of, read_source

_BUILT_IN_TEXT = "evaluation_text.txt"
_BUILT_IN_SENTENCES = "evaluation_sentences.txt"
_GOLDEN = "golden.safetensors"
_VERSIONED = ("onnx", "onnxruntime", "onnxruntime-genai", "optimum", "tokenizers", "torch",
              "transformers", "outpost-export", "outpost-runtime")  # fmt: skip
_SIGNIFICANT = 6
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a user asks for.

    Attributes:
        source: A checkpoint folder.
        adapter: A LoRA folder to merge, or None.
        evaluation: A text (decoders) or one text per line (encoders), or None: the built-in ones.
        accept_worse: Why a missed threshold is acceptable, or None.
    """

    source: Path
    adapter: Path | None
    recipe: Recipe
    out: Path
    evaluation: Path | None
    accept_worse: str | None


def build(order: Order, reporter: Reporter) -> Finished:
    """Build a bundle.

    Raises:
        SourceError: The source cannot be used.
        RecipeError: The recipe or an option is wrong.
        ConversionError: A library failed on the source.
        EvidenceError: The build is worse than the recipe allows.
    """
    if order.accept_worse is not None and not order.accept_worse.strip():
        raise RecipeError("--accept-worse needs a reason.", hint="Say why, in a few words.")
    if order.out.exists():
        raise RecipeError(
            f"{order.out} exists already.", hint="Remove it, or choose another --out."
        )
    source = read_source(order.source, task=order.recipe.task)
    licence = _licence(order, source)
    recipe = order.recipe.with_defaults(task=source.task, licence=licence)
    evaluation = _evaluation(order, recipe)
    with _hidden_folder(order.out) as folder:
        checkpoint = _merged(order, source, folder / ".merged", reporter)
        bundle_folder = folder / "bundle"
        bundle_folder.mkdir()
        built = _build(checkpoint, recipe, evaluation, bundle_folder, reporter)
        _pass_gate(built, recipe, order.accept_worse)
        golden.save(bundle_folder / _GOLDEN, built.golden)
        manifest = _manifest(built, recipe, source, order, evaluation, bundle_folder)
        bundle = write_manifest(bundle_folder, manifest)
        with reporter.step("Opening the bundle as a device would"):
            _check_as_device(bundle)
        bundle_folder.replace(order.out)
        sync_folder(order.out.parent)
    return Finished(
        bundle=replace(bundle, folder=order.out), tokens_per_second=built.tokens_per_second
    )


@contextmanager
def _hidden_folder(out: Path) -> Iterator[Path]:
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


def _licence(order: Order, source: Source) -> str:
    of_adapter = "unknown" if order.adapter is None else licence_of(order.adapter)
    return of_adapter if of_adapter != "unknown" else source.licence


def _merged(order: Order, source: Source, folder: Path, reporter: Reporter) -> Source:
    if order.adapter is None:
        return source
    if source.task != DECODER_TASK:
        raise RecipeError(f"Adapters are merged into {DECODER_TASK} models only.")
    folder.mkdir()
    with reporter.step("Merging the adapter"):
        lora.merge(source, order.adapter, folder)
    return read_source(folder, task=source.task)


def _build(
    source: Source, recipe: Recipe, evaluation: Text, folder: Path, reporter: Reporter
) -> Built:
    if recipe.task == DECODER_TASK:
        return build_decoder(source, recipe, evaluation, folder, reporter)
    if recipe.task in (EMBEDDING_TASK, *CLASSIFIER_TASKS):
        texts = [text for text in evaluation.text.splitlines() if text.strip()]
        return build_encoder(source, recipe, texts, folder, reporter)
    raise RecipeError(f"A model for {recipe.task} cannot be built yet.")


def _evaluation(order: Order, recipe: Recipe) -> Text:
    # Read once: what is measured on and what the manifest's digest names must be the same.
    if order.evaluation is not None:
        dialogues = order.evaluation.suffix == DIALOGUES_SUFFIX
        text = read_evaluation(order.evaluation)
        return Text(text=text, built_in=False, dialogues=dialogues)
    name = _BUILT_IN_TEXT if recipe.task == DECODER_TASK else _BUILT_IN_SENTENCES
    text = read_evaluation(Path(__file__).with_name(name))
    return Text(text=text, built_in=True, dialogues=False)


def _pass_gate(built: Built, recipe: Recipe, accept_worse: str | None) -> None:
    missed = misses(built.figures, recipe.thresholds)
    if missed and accept_worse is None:
        raise EvidenceError(
            f"The {recipe.target} build is not good enough: {'; '.join(map(str, missed))}.",
            hint=_advice(recipe, missed),
        )


def _advice(recipe: Recipe, missed: list[Miss]) -> str:
    accept = "or record an exception with --accept-worse REASON"
    if recipe.bits is None:
        return f"The graph does not compute what the checkpoint does: report this, {accept}."
    better = "cpu-int8" if recipe.target == "cpu-int4" else "cpu-fp32"
    figure = missed[0].figure
    smaller = f"a block_size below {recipe.block_size}"
    return f"Try --target {better}, {smaller}, another threshold for {figure}, {accept}."


def _manifest(
    built: Built, recipe: Recipe, source: Source, order: Order, evaluation: Text, folder: Path
) -> Manifest:
    paths = sorted(folder.iterdir())
    for path in paths:
        path.chmod(0o644)  # some libraries write files that only their owner may read
    files = {path.name: describe_file(path) for path in paths}
    accepted = order.accept_worse if misses(built.figures, recipe.thresholds) else None
    return Manifest(
        name=recipe.name,
        version=recipe.version,
        task=str(recipe.task),
        target=recipe.target,
        files=files,
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
            source=source.digests,
            adapter={} if order.adapter is None else digests_of(order.adapter),
            recipe=asdict(recipe),
            recipe_sha256=recipe.sha256,
            evaluation_sha256=hashlib.sha256(evaluation.text.encode()).hexdigest(),
            versions=_versions(),
        ),
    )


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _VERSIONED}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def _rounded(value: float) -> float:
    # The last bits of a float depend on how threads shared the sum; a manifest must not.
    return float(f"{round(value, 6):.{_SIGNIFICANT}g}")


def _check_as_device(bundle: Bundle) -> None:
    model = open_model(bundle)
    try:
        golden.check(model)
    finally:
        model.close()
