"""From a causal language model to a measured decoder graph with tokenizer and template."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from outpost_runtime.errors import BundleError, InvalidInputError, OutpostError
from outpost_runtime.interface import GenerationDefaults, TextInterface
from outpost_runtime.sessions.ort import OrtSession
from outpost_runtime.text.chat import ChatTemplate, Message
from outpost_runtime.text.decoder import Decoder, key_value_bytes_per_token
from outpost_runtime.text.request import Sampling
from outpost_runtime.tokenizer import Tokenizer

from outpost_export import decoder_evidence as evidence
from outpost_export.decoder_graph import write_decoder_graph
from outpost_export.errors import ConversionError, RecipeError, SourceError
from outpost_export.evaluation import Evaluation, dialogues_evaluation, text_evaluation
from outpost_export.progress import Reporter
from outpost_export.recipe import Recipe
from outpost_export.result import Built
from outpost_export.source import Source, load_model, load_tokenizer

_WINDOWS = 1.5
"""The evaluation text is this many times as long as the attention window."""

_TOLERANCES = {"agreement": 0.95, "perplexity_change": 0.02}


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """What a user wants to measure on.

    Attributes:
        built_in: It is the exporter's own, which may be cut or repeated.
        dialogues: It is JSON Lines of messages.
    """

    text: str
    built_in: bool
    dialogues: bool


def build_decoder(
    source: Source, recipe: Recipe, text: Text, out: Path, reporter: Reporter
) -> Built:
    """Write model, tokenizer and chat template into ``out`` and measure them.

    Raises:
        SourceError: Tokenizer or configuration cannot be used.
        RecipeError: The evaluation text is too short for this model.
        ConversionError: The graph cannot be written, or the runtime cannot open it.
    """
    tokenizer = load_tokenizer(source.folder)
    interface = _interface(source, recipe, tokenizer, out)
    template = _chat_template(interface, tokenizer, out)
    window = _window(source, interface.context_length)
    evaluation = _evaluation(tokenizer, out / interface.tokenizer, text, template)
    evaluation = _fitted(evaluation, text, interface.context_length, window)

    model = load_model(source.folder, transformers.AutoModelForCausalLM)
    wanted = evidence.reference(model, evaluation, interface.end_tokens, reporter)
    del model

    with reporter.step(f"Writing the {recipe.target} graph"):
        _write_graph(source, recipe, interface, out)
    decoder, bytes_per_token = _open(out / interface.model, interface.context_length)
    started = time.perf_counter()
    figures, got = evidence.measure(decoder, wanted, evaluation, reporter)
    seconds = time.perf_counter() - started
    buffers = decoder.memory_bytes
    agreeing = evidence.greedy_tokens(decoder, wanted, interface.end_tokens, reporter)
    golden, golden_perplexity = evidence.golden(evaluation.ids, got)
    return Built(
        interface=interface,
        figures=figures
        | {"greedy_tokens": float(agreeing), "golden_perplexity": golden_perplexity},
        golden=golden,
        tolerances=_TOLERANCES,
        memory_bytes=_weights(out) + buffers + bytes_per_token,
        tokens_per_second=len(evaluation.ids) / seconds,
    )


def _interface(source: Source, recipe: Recipe, tokenizer: Any, out: Path) -> TextInterface:
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None:
        (out / "chat_template.jinja").write_text(template, "utf-8")
    generation = _generation(source.folder, source.config)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    return TextInterface(
        model="model.onnx",
        tokenizer="tokenizer.json",
        chat_template="chat_template.jinja" if template is not None else None,
        context_length=_context_length(source, recipe),
        end_tokens=_end_tokens(generation, source, tokenizer),
        special_tokens={
            n: str(getattr(tokenizer, n)) for n in names if getattr(tokenizer, n, None)
        },
        defaults=_defaults(generation),
    )


def _context_length(source: Source, recipe: Recipe) -> int:
    trained = getattr(source.config, "max_position_embeddings", recipe.context_length)
    return min(recipe.context_length, int(trained))


def _generation(folder: Path, config: Any) -> Any:
    if not (folder / "generation_config.json").is_file():
        return transformers.GenerationConfig.from_model_config(config)
    try:
        return transformers.GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        path = folder / "generation_config.json"
        raise SourceError(f"transformers cannot read {path}: {error}") from error


def _end_tokens(generation: Any, source: Source, tokenizer: Any) -> tuple[int, ...]:
    found = generation.eos_token_id
    if found is None:
        found = source.config.eos_token_id
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        raise SourceError(
            f"{source.folder} names no token that ends an answer.",
            hint="Set eos_token_id in its generation_config.json.",
        )
    return tuple(found) if isinstance(found, list) else (int(found),)


def _defaults(generation: Any) -> GenerationDefaults:
    penalty = float(generation.repetition_penalty or 1.0)
    if not generation.do_sample:
        return GenerationDefaults(repetition_penalty=penalty)
    defaults = GenerationDefaults(
        temperature=1.0 if generation.temperature is None else float(generation.temperature),
        top_p=1.0 if generation.top_p is None else float(generation.top_p),
        top_k=int(generation.top_k or 0),
        min_p=float(generation.min_p or 0.0),
        repetition_penalty=penalty,
    )
    try:
        Sampling.of_defaults(defaults)
    except InvalidInputError as error:
        raise SourceError(f"The generation_config.json is wrong: {error.message}") from error
    return defaults


def _evaluation(
    tokenizer: Any, path: Path, text: Text, template: ChatTemplate | None
) -> Evaluation:
    ours = Tokenizer(path)
    if text.dialogues:
        if template is None:
            raise RecipeError(
                "Dialogues need a chat template, and this model has none.",
                hint="Give a plain text with --eval.",
            )
        return dialogues_evaluation(
            text.text, template.render, lambda part: ours.encode(part, add_special_tokens=False)
        )
    ids = ours.encode(text.text, add_special_tokens=True)
    if ids != tokenizer(text.text)["input_ids"]:
        raise ConversionError(
            "The runtime's tokenizer and transformers' read the text differently."
        )
    return text_evaluation(ids)


def _fitted(evaluation: Evaluation, text: Text, context_length: int, window: int) -> Evaluation:
    # A graph that forgets the sliding window is exact up to the window's length, so the text
    # must be longer; the built-in one is repeated for that.
    if text.built_in:
        wanted = max(evidence.MAX_TOKENS, math.ceil(_WINDOWS * window))
        evaluation = evaluation.repeated(wanted) if window else evaluation.cut(wanted)
    evaluation = evaluation.cut(context_length)
    count = len(evaluation.ids)
    if count < evidence.GREEDY_TOKENS or not evaluation.counted.any():
        raise RecipeError(
            f"The evaluation has {count} tokens; at least {evidence.GREEDY_TOKENS} are needed.",
            hint="Give a longer text with --eval.",
        )
    if window and count < min(_WINDOWS * window, context_length):
        raise RecipeError(
            f"The evaluation text has {count} tokens and cannot test the model's attention "
            f"window of {window}: {_WINDOWS} times as many are needed.",
            hint=f"Give a longer text with --eval, or a context_length of at most {window}.",
        )
    return evaluation


def _window(source: Source, context_length: int) -> int:
    """Return the attention window that a context can outgrow, or 0."""
    window = getattr(source.config, "sliding_window", None) or 0
    return window if window < context_length else 0


def _chat_template(interface: TextInterface, tokenizer: Any, out: Path) -> ChatTemplate | None:
    """Return the chat template, checked to render as transformers renders it."""
    if interface.chat_template is None:
        return None
    question = "What does E-217 mean?"
    source = (out / interface.chat_template).read_text("utf-8")
    try:
        messages = [Message(role="user", content=question)]
        template = ChatTemplate(source, interface.special_tokens)
        ours = template.render(messages)
    except OutpostError as error:
        raise ConversionError(
            f"The runtime cannot use the chat template: {error.message}"
        ) from error
    theirs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    if ours != theirs:
        raise ConversionError(
            f"The runtime renders the chat template as {ours!r}, transformers as {theirs!r}."
        )
    return template


def _write_graph(source: Source, recipe: Recipe, interface: TextInterface, out: Path) -> None:
    try:
        write_decoder_graph(
            source.folder,
            out,
            bits=recipe.bits,
            block_size=recipe.block_size,
            context_length=interface.context_length,
        )
    except Exception as error:  # the model builder raises what it likes
        raise ConversionError(
            f"The model builder cannot write this model: {type(error).__name__}: {error}",
            hint="Only decoders that onnxruntime-genai's model builder knows can be built.",
        ) from error


def _open(path: Path, context_length: int) -> tuple[Decoder, int]:
    try:
        session = OrtSession(path)
        decoder = Decoder(session, slots=1, max_length=context_length)
    except BundleError as error:
        raise ConversionError(
            f"The graph was written but cannot be opened: {error.message}"
        ) from error
    return decoder, key_value_bytes_per_token(session)


def _weights(out: Path) -> int:
    return sum(path.stat().st_size for path in out.glob("model.onnx*"))
