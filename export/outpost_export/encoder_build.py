"""From an encoder to a measured graph: sentence embeddings and classifiers."""

from pathlib import Path
from typing import Any

import transformers
from optimum.exporters.tasks import TasksManager
from outpost_runtime.errors import BundleError
from outpost_runtime.interface import EmbeddingInterface, TensorInterface
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.tokenizer import Tokenizer

from outpost_export import encoder_evidence as evidence
from outpost_export.encoder_graph import Encoder, SentenceEncoder, classifier, write_encoder_graph
from outpost_export.errors import ConversionError, RecipeError
from outpost_export.grid import FrozenGrid
from outpost_export.pooling import read_pooling
from outpost_export.progress import Reporter
from outpost_export.recipe import EMBEDDING_TASK, Recipe
from outpost_export.result import Built
from outpost_export.source import Source, load_model, load_tokenizer

_MAX_TOKENS = 512
_MAX_BATCH = 32
_TOLERANCE_EXACT = 1e-3
_TOLERANCE_QUANTIZED = 0.05


def build_encoder(
    source: Source,
    recipe: Recipe,
    texts: list[str],
    out: Path,
    reporter: Reporter,
    grid: FrozenGrid | None = None,
) -> Built:
    """Write model and tokenizer into ``out`` and measure them.

    Args:
        texts: What the build is evaluated on.
        grid: The predecessor's, to quantize on.

    Raises:
        SourceError: Pooling or tokenizer cannot be used.
        RecipeError: There is no text to evaluate with, or the predecessor is another kind of
            model.
        ConversionError: The graph cannot be written, or the runtime cannot open it.
    """
    if not texts:
        raise RecipeError("The evaluation file has no lines.", hint="Write one text per line.")
    tokenizer = load_tokenizer(source.folder)
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    longest = min(
        _MAX_TOKENS, tokenizer.model_max_length
    )  # RoBERTa has more positions than it reads
    encoder, max_tokens = _encoder(source, str(recipe.task), longest)
    with reporter.step(f"Writing the {recipe.target} graph"):
        steps = write_encoder_graph(
            encoder, out, bits=recipe.bits, block_size=recipe.block_size, grid=grid
        )
    runtime_tokenizer = Tokenizer((out / "tokenizer.json").read_bytes(), max_tokens=max_tokens)
    wanted = list(evidence.cases(encoder, runtime_tokenizer, texts))
    session = _open(out / "model.onnx")
    figures = evidence.measure(session, wanted, encoder.output, reporter)
    exact = recipe.bits is None
    return Built(
        interface=_interface(source, recipe, session, max_tokens),
        figures=figures | steps,
        golden=evidence.golden(session, wanted),
        tolerances={"max_difference": _TOLERANCE_EXACT if exact else _TOLERANCE_QUANTIZED},
        memory_bytes=sum(path.stat().st_size for path in out.glob("model.onnx*")),
    )


def _encoder(source: Source, task: str, longest: int) -> tuple[Encoder, int]:
    model = load_model(source.folder, _model_class(task))
    positions = getattr(source.config, "max_position_embeddings", longest)
    if task != EMBEDDING_TASK:
        return classifier(model), min(positions, longest)
    pooling = read_pooling(source.folder)
    limit = min(positions, longest, pooling.max_tokens or longest)
    return SentenceEncoder(model, pooling), limit


def _model_class(task: str) -> Any:
    if task == EMBEDDING_TASK:
        return transformers.AutoModel
    return TasksManager.get_model_class_for_task(task)


def _interface(
    source: Source, recipe: Recipe, session: OrtSession, max_tokens: int
) -> EmbeddingInterface | TensorInterface:
    if recipe.task == EMBEDDING_TASK:
        return EmbeddingInterface(
            model="model.onnx",
            tokenizer="tokenizer.json",
            max_tokens=max_tokens,
            max_batch=_MAX_BATCH,
            dimension=session.outputs[0].shape[-1] or source.config.hidden_size,
            inputs=session.inputs,
            outputs=session.outputs,
        )
    labels = source.config.id2label
    return TensorInterface(
        model="model.onnx",
        tokenizer="tokenizer.json",
        max_batch=_MAX_BATCH,
        max_sequence=max_tokens,
        labels=tuple(str(labels[index]) for index in range(len(labels))),
        inputs=session.inputs,
        outputs=session.outputs,
        padded=True,
    )


def _open(path: Path) -> OrtSession:
    try:
        return OrtSession(path)
    except BundleError as error:
        raise ConversionError(
            f"The graph was written but cannot be opened: {error.message}"
        ) from error
