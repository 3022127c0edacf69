"""What a decoder is measured on: a text, or dialogues of which the answers count.

A text is scored from its second token to its last. Dialogues are JSON Lines, as
chat fine-tunes are trained on: ``{"messages": [{"role": …, "content": …}, …]}``, the
last message being the answer. They are rendered with the model's own chat template,
one behind the other, and only the answers' tokens are scored: a fine-tune on answers
was never taught to predict questions, and what it thinks of them is noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from outpost_runtime.documents import Reader, parse_json_object
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.text.chat import ChatTemplate, Message
from outpost_runtime.tokenizer import Tokenizer

from outpost_export.errors import ConversionError, RecipeError

GREEDY_TOKENS = 32
"""Length of the greedy continuations that are compared."""

MAX_TOKENS = 1024
"""Tokens of the evaluation text that are scored, unless the user brings a text."""

_WINDOWS = 1.5
"""The evaluation text is this many times as long as the attention window."""

_DIALOGUES_SUFFIX = ".jsonl"
_BUILT_IN_TEXT = "evaluation_text.txt"
_BUILT_IN_SENTENCES = "evaluation_sentences.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What a text must be long enough for, and not longer than.

    Attributes:
        context_length: Of the build.
        window: The model's attention window if a context can outgrow it, else 0.
    """

    context_length: int
    window: int


Encode = Callable[[str], list[int]]
Render = Callable[[list[Message]], str]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Token ids, and which of them are scored.

    Attributes:
        ids: n tokens.
        counted: [n - 1]; whether the token at each position's successor is scored.
    """

    ids: list[int]
    counted: NDArray[np.bool_]

    def cut(self, length: int) -> "Evaluation":
        """Return the first ``length`` tokens."""
        return Evaluation(ids=self.ids[:length], counted=self.counted[: max(0, length - 1)])

    def repeated(self, length: int) -> "Evaluation":
        """Return ``length`` tokens: this text again and again."""
        ids = self.ids * (length // len(self.ids) + 1)
        return text_evaluation(ids).cut(length)


def text_evaluation(ids: list[int]) -> Evaluation:
    """Return a text of which every token is scored."""
    return Evaluation(ids=ids, counted=np.ones(max(0, len(ids) - 1), np.bool_))


def dialogues_evaluation(data: str, render: Render, encode: Encode) -> Evaluation:
    """Return dialogues of which the answers are scored.

    Args:
        data: JSON Lines.
        render: Messages to a prompt that ends where the answer begins.
        encode: Text to token ids, markers as the text has them.

    Raises:
        RecipeError: A line is no dialogue.
    """
    ids: list[int] = []
    scored: list[bool] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        *question, answer = _messages(line, f"line {number}")
        prompt_ids, answer_ids = encode(render(question)), encode(answer.content)
        ids += prompt_ids + answer_ids
        scored += [False] * len(prompt_ids) + [True] * len(answer_ids)
    if not ids:
        raise RecipeError("The evaluation file has no dialogues.")
    return Evaluation(ids=ids, counted=np.array(scored[1:], np.bool_))


def read_text(path: Path | None, *, decoder: bool) -> Text:
    """Read what a user wants to measure on; without a path, what the exporter brings.

    Once per build: what is measured on and what the manifest's digest names is the same.

    Args:
        decoder: A text is needed, and not one text per line.

    Raises:
        RecipeError: It cannot be read, or is not UTF-8.
    """
    if path is not None:
        dialogues = path.suffix == _DIALOGUES_SUFFIX
        return Text(text=_contents(path), built_in=False, dialogues=dialogues)
    name = _BUILT_IN_TEXT if decoder else _BUILT_IN_SENTENCES
    return Text(text=_contents(Path(__file__).with_name(name)), built_in=True, dialogues=False)


def evaluation_for(
    text: Text, tokenizer: Any, ours: Tokenizer, template: ChatTemplate | None, fit: "Fit"
) -> Evaluation:
    """Return the tokens to measure a model on.

    Args:
        tokenizer: That of transformers.
        ours: That of the bundle.

    Raises:
        RecipeError: The text is too short for this model, or needs a chat template.
        ConversionError: The tokenizers differ.
    """
    return _fitted(_read(text, tokenizer, ours, template), text, fit)


def _messages(line: str, path: str) -> list[Message]:
    try:
        reader = parse_json_object(line.encode(), path=path)
        messages = [_message(table) for table in reader.tables("messages")]
        reader.end()
        if len(messages) < 2 or messages[-1].role != "assistant":  # noqa: PLR2004 - a question, too
            raise reader.fault("messages", "must end with an answer of the role 'assistant'")
    except InvalidInputError as error:
        raise RecipeError(f"The evaluation file is wrong: {error.message}") from error
    return messages


def _message(reader: Reader) -> Message:
    message = Message(role=reader.string("role"), content=reader.string("content"))
    reader.end()
    return message


def _contents(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The evaluation text {path} cannot be read: {error}.") from error


def _read(text: Text, tokenizer: Any, ours: Tokenizer, template: ChatTemplate | None) -> Evaluation:
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


def _fitted(evaluation: Evaluation, text: Text, fit: Fit) -> Evaluation:
    context_length, window = fit.context_length, fit.window
    # A graph that forgets the sliding window is exact up to the window's length, so the text
    # must be longer; the built-in one is repeated for that.
    if text.built_in:
        wanted = max(MAX_TOKENS, math.ceil(_WINDOWS * window))
        evaluation = evaluation.repeated(wanted) if window else evaluation.cut(wanted)
    evaluation = evaluation.cut(context_length)
    count = len(evaluation.ids)
    if count < GREEDY_TOKENS or not evaluation.counted.any():
        raise RecipeError(
            f"The evaluation has {count} tokens; at least {GREEDY_TOKENS} are needed.",
            hint="Give a longer text with --eval.",
        )
    if window and count < min(_WINDOWS * window, context_length):
        raise RecipeError(
            f"The evaluation text has {count} tokens and cannot test the model's attention "
            f"window of {window}: {_WINDOWS} times as many are needed.",
            hint=f"Give a longer text with --eval, or a context_length of at most {window}.",
        )
    return evaluation
