"""From a causal language model to a measured decoder graph with tokenizer and template."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import transformers
from outpost_runtime.contents import FolderContents
from outpost_runtime.errors import BundleError
from outpost_runtime.interface import AdapterSupport, TextInterface, TokenTable
from outpost_runtime.sessions import Session
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.text.adapter_session import AdapterSession
from outpost_runtime.text.adapters import AdapterBank
from outpost_runtime.text.decoder import Decoder, key_value_bytes_per_token
from outpost_runtime.text.scoring import score
from outpost_runtime.text.token_table import token_rows, with_table
from outpost_runtime.tokenizer import Tokenizer
from safetensors import SafetensorError

from outpost_export import decoder_evidence as evidence
from outpost_export.calibration import calibration_text
from outpost_export.decoder_graph import write_decoder_graph
from outpost_export.errors import ConversionError, RecipeError
from outpost_export.evaluation import Fit, Text, evaluation_for
from outpost_export.grid import FrozenGrid
from outpost_export.lora_graph import write_adapter_graph
from outpost_export.progress import Reporter
from outpost_export.recipe import Recipe
from outpost_export.result import Built
from outpost_export.source import Source, load_model, load_tokenizer
from outpost_export.text_interface import checked_template, text_interface
from outpost_export.tied_head import token_table

TOLERANCES = {"agreement": 0.95, "perplexity_change": 0.02}
"""How far a device may be off when it runs a decoder's golden inputs."""

_EXACT = 1e-4


def build_decoder(
    source: Source,
    recipe: Recipe,
    text: Text,
    out: Path,
    reporter: Reporter,
    grid: FrozenGrid | None = None,
) -> Built:
    """Write model, tokenizer and chat template into ``out`` and measure them.

    Args:
        grid: The predecessor's, to quantize on.

    Raises:
        SourceError: Tokenizer or configuration cannot be used.
        RecipeError: The evaluation text is too short for this model, or the predecessor is
            another kind of model.
        ConversionError: The graph cannot be written, or the runtime cannot open it.
    """
    tokenizer = load_tokenizer(source.folder)
    interface = text_interface(source, recipe, tokenizer, out)
    template = checked_template(interface, tokenizer, out)
    ours = Tokenizer((out / interface.tokenizer).read_bytes())
    fit = fit_of(source, interface.context_length)
    evaluation = evaluation_for(text, tokenizer, ours, template, fit)

    calibration = ours.encode(calibration_text(), add_special_tokens=True)
    with reporter.step(f"Writing the {recipe.target} graph"):
        steps = _write_graph(source, recipe, interface, calibration, grid, out)

    model = load_model(source.folder, transformers.AutoModelForCausalLM)
    wanted = evidence.reference(model, evaluation, interface.end_tokens, reporter)
    del model

    weights = _weights(out)
    interface = replace(interface, token_table=token_table(out / interface.model))
    session = open_graph(out / interface.model, interface.token_table)
    decoder = open_decoder(session, interface.context_length)
    memory = weights + decoder.memory_bytes + key_value_bytes_per_token(session)
    measured = evidence.measure(decoder, wanted, evaluation, interface.end_tokens, reporter)
    if recipe.adapter_rank:
        with reporter.step("Writing the graph for adapters"):
            support = write_adapter_graph(out, rank=recipe.adapter_rank)
            _check_adapter_graph(out, support, interface.token_table, measured)
        interface = replace(interface, adapters=support)
    return Built(
        interface=interface,
        figures=measured.figures | steps,
        golden=measured.golden,
        tolerances=TOLERANCES,
        memory_bytes=memory,
        tokens_per_second=measured.tokens_per_second,
    )


def fit_of(source: Source, context_length: int) -> Fit:
    """Return what an evaluation must fit to measure a model with a context of this length."""
    window = getattr(source.config, "sliding_window", None) or 0
    return Fit(context_length=context_length, window=window if window < context_length else 0)


def open_graph(path: Path, table: TokenTable | None) -> Session:
    """Open a decoder's graph that was built here.

    Args:
        table: See :class:`TextInterface`.

    Raises:
        ConversionError: ONNX Runtime cannot.
    """
    try:
        return with_table(OrtSession(path), token_rows(FolderContents(path.parent), table))
    except BundleError as error:
        raise ConversionError(
            f"The graph was written but cannot be opened: {error.message}"
        ) from error


def open_decoder(session: Session, context_length: int) -> Decoder:
    """Put the runtime's decoder on a session, for one sequence.

    Raises:
        ConversionError: The graph is no decoder that the runtime knows.
    """
    try:
        return Decoder(session, rows=1, max_length=context_length)
    except BundleError as error:
        raise ConversionError(
            f"The graph was written but cannot be used: {error.message}"
        ) from error


def _check_adapter_graph(
    out: Path, support: AdapterSupport, table: TokenTable | None, measured: evidence.Measured
) -> None:
    """Check that rows without an adapter get what the plain graph computes."""
    ids = [int(token) for token in measured.golden["input_ids"]]
    bank = AdapterBank(support, base="", capacity=1)
    session = AdapterSession(open_graph(out / support.model, table), bank)
    try:
        got = score(open_decoder(session, len(ids)), ids).log_probabilities
    finally:
        session.close()
    if not np.allclose(got, measured.score.log_probabilities[: len(got)], rtol=0, atol=_EXACT):
        raise ConversionError(
            "The graph for adapters does not compute what the plain one does: report this.",
            hint="Build without adapter_rank, and merge adapters instead.",
        )


def _write_graph(
    source: Source,
    recipe: Recipe,
    interface: TextInterface,
    calibration: list[int],
    grid: FrozenGrid | None,
    out: Path,
) -> dict[str, float]:
    try:
        return write_decoder_graph(
            source.folder,
            out,
            recipe,
            context_length=interface.context_length,
            calibration=calibration,
            grid=grid,
        )
    except RecipeError:
        raise
    except SafetensorError as error:
        raise ConversionError(
            f"The weights in {source.folder} cannot be read: {error}.",
            hint="Get the checkpoint again: a file of it is damaged or incomplete.",
        ) from error
    except Exception as error:  # the model builder raises what it likes
        raise ConversionError(
            f"The model builder cannot write this model: {type(error).__name__}: {error}",
            hint="Only decoders that onnxruntime-genai's model builder knows can be built.",
        ) from error


def _weights(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("model.onnx*"))
