"""From a source and a recipe to a bundle, or to nothing at all.

1. Check the source, and the bundle whose grid it is built on; merge the adapter, if there is one.
2. Write graph, tokenizer and template into a hidden folder beside the output; an ONNX file is
   copied.
3. Measure the graph against the source, through the runtime.
4. Pass the gate, or fail and leave nothing under the final name.
5. Write golden file and manifest.
6. Open the finished bundle as a device would, and run its golden inputs.
7. Rename the folder to its final name.
"""

from dataclasses import dataclass
from pathlib import Path

from outpost_runtime import golden, golden_file
from outpost_runtime.bundle import Bundle
from outpost_runtime.opening import open_model

from outpost_export import adapter as lora
from outpost_export.decoder_build import build_decoder
from outpost_export.encoder_build import build_encoder
from outpost_export.errors import RecipeError
from outpost_export.evaluation import Text, read_text
from outpost_export.finish import Origin, check_output, finish, hidden_folder, publish
from outpost_export.grid import FrozenGrid, read_grid
from outpost_export.onnx_build import build_onnx
from outpost_export.onnx_source import is_onnx_file, read_onnx
from outpost_export.progress import Reporter
from outpost_export.recipe import (
    CLASSIFIER_TASKS,
    DECODER_TASK,
    EMBEDDING_TASK,
    TENSOR_TASK,
    Recipe,
)
from outpost_export.result import Built, Finished
from outpost_export.source import Source, digests_of, licence_of, read_source


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a user asks for.

    Attributes:
        source: A checkpoint folder, or an ONNX file.
        adapter: A LoRA folder to merge, or None.
        evaluation: A text (decoders) or one text per line (encoders), or None: the built-in ones.
        golden: Inputs for an ONNX file, or None: they are made up.
        on_grid_of: The bundle on whose grid weights are quantized, or None: on their own.
        accept_worse: Why a missed threshold is acceptable, or None.
    """

    source: Path
    adapter: Path | None
    recipe: Recipe
    out: Path
    evaluation: Path | None
    accept_worse: str | None
    golden: Path | None = None
    on_grid_of: Path | None = None


def build(order: Order, reporter: Reporter) -> Finished:
    """Build a bundle.

    Raises:
        SourceError: The source cannot be used.
        BundleError: The bundle on whose grid it shall be built is damaged.
        RecipeError: The recipe or an option is wrong.
        ConversionError: A library failed on the source.
        EvidenceError: The build is worse than the recipe allows.
    """
    check_output(order.out, order.accept_worse)
    if is_onnx_file(order.source):
        return _build_from_onnx(order, reporter)
    if order.golden is not None:
        raise RecipeError("--golden is for ONNX files.", hint="Checkpoints are measured by --eval.")
    return _build_from_checkpoint(order, reporter)


def _build_from_onnx(order: Order, reporter: Reporter) -> Finished:
    _refuse_options_of_checkpoints(order)
    source = read_onnx(order.source)
    recipe = order.recipe.with_defaults(
        task=TENSOR_TASK, licence="unknown", rounding=source.rounding
    )
    with hidden_folder(order.out) as folder:
        bundle_folder = folder / "bundle"
        bundle_folder.mkdir()
        built = build_onnx(source, recipe, order.golden, bundle_folder, reporter)
        inputs = {name: a for name, a in built.golden.items() if name.split("/")[1] == "inputs"}
        origin = Origin(source=source.digests, adapter={}, measured_on=golden_file.encode(inputs))
        return _finished(order, recipe, built, bundle_folder, origin, reporter)


def _refuse_options_of_checkpoints(order: Order) -> None:
    recipe = order.recipe
    refused = {
        "--adapter merges into a checkpoint": order.adapter is not None,
        "--adapter-rank is for language models": recipe.adapter_rank > 0,
        "its weights are kept as they are, without --on-grid-of": order.on_grid_of is not None,
        "--eval is for checkpoints; bring inputs with --golden FILE": order.evaluation is not None,
        f"its task is {TENSOR_TASK}; leave --task out": recipe.task not in (None, TENSOR_TASK),
    }
    for reason, given in refused.items():
        if given:
            raise RecipeError(f"{order.source} is an ONNX file: {reason}.")
    if recipe.target != "cpu-fp32":
        raise RecipeError(
            f"An ONNX file cannot be built for {recipe.target}: its weights are kept as they are.",
            hint="Use --target cpu-fp32, whatever the types in it are.",
        )


def _build_from_checkpoint(order: Order, reporter: Reporter) -> Finished:
    source = read_source(order.source, task=order.recipe.task)
    recipe = order.recipe.with_defaults(task=source.task, licence=_licence(order, source))
    evaluation = read_text(order.evaluation, decoder=recipe.task == DECODER_TASK)
    grid = None if order.on_grid_of is None else read_grid(order.on_grid_of, recipe)
    origin = Origin(
        source=source.digests,
        adapter={} if order.adapter is None else digests_of(order.adapter),
        measured_on=evaluation.text.encode(),
        grid_of=None if grid is None else grid.bundle,
    )
    with hidden_folder(order.out) as folder:
        checkpoint = _merged(order, source, folder / ".merged", reporter)
        bundle_folder = folder / "bundle"
        bundle_folder.mkdir()
        built = _build(checkpoint, recipe, evaluation, bundle_folder, reporter, grid)
        return _finished(order, recipe, built, bundle_folder, origin, reporter)


def _finished(
    order: Order, recipe: Recipe, built: Built, folder: Path, origin: Origin, reporter: Reporter
) -> Finished:
    bundle = finish(folder, built, recipe, origin, order.accept_worse)
    with reporter.step("Opening the bundle as a device would"):
        _check_as_device(bundle)
    return Finished(
        bundle=publish(bundle, order.out),
        tokens_per_second=built.tokens_per_second,
        notes=built.notes,
    )


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
    source: Source,
    recipe: Recipe,
    evaluation: Text,
    folder: Path,
    reporter: Reporter,
    grid: FrozenGrid | None,
) -> Built:
    if recipe.task == DECODER_TASK:
        return build_decoder(source, recipe, evaluation, folder, reporter, grid)
    if recipe.task in (EMBEDDING_TASK, *CLASSIFIER_TASKS):
        texts = [text for text in evaluation.text.splitlines() if text.strip()]
        return build_encoder(source, recipe, texts, folder, reporter, grid)
    raise RecipeError(f"A model for {recipe.task} cannot be built yet.")


def _check_as_device(bundle: Bundle) -> None:
    model = open_model(bundle)
    try:
        golden.check(model)
    finally:
        model.close()
