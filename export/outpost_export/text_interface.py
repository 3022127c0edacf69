"""How a language model is talked to: tokenizer, chat template, end tokens, defaults."""

from pathlib import Path
from typing import Any

import transformers
from outpost_runtime.errors import InvalidInputError, OutpostError
from outpost_runtime.interface import GenerationDefaults, TextInterface
from outpost_runtime.text.chat import ChatTemplate, Message
from outpost_runtime.text.request import Sampling

from outpost_export.errors import ConversionError, SourceError
from outpost_export.recipe import Recipe
from outpost_export.source import Source

_TOKENIZER = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"


def text_interface(source: Source, recipe: Recipe, tokenizer: Any, out: Path) -> TextInterface:
    """Write tokenizer and chat template into ``out`` and describe them.

    Args:
        tokenizer: That of the source, loaded by transformers.

    Raises:
        SourceError: The source does not say how an answer ends, or has wrong defaults.
    """
    tokenizer.backend_tokenizer.save(str(out / _TOKENIZER))
    template = _template(tokenizer)
    if template is not None:
        (out / _TEMPLATE).write_text(template, "utf-8")
    generation = _generation(source.folder, source.config)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    return TextInterface(
        model="model.onnx",
        tokenizer=_TOKENIZER,
        chat_template=_TEMPLATE if template is not None else None,
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


def _template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return None if template is None else str(template)


def checked_template(interface: TextInterface, tokenizer: Any, out: Path) -> ChatTemplate | None:
    """Return the chat template in ``out``, checked to render as transformers renders it.

    Raises:
        ConversionError: The runtime cannot use it, or renders something else.
    """
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
