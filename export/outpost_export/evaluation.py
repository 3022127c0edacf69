"""What a decoder is measured on: a text, or dialogues of which the answers count.

A text is scored from its second token to its last. Dialogues are JSON Lines, as
chat fine-tunes are trained on: ``{"messages": [{"role": …, "content": …}, …]}``, the
last message being the answer. They are rendered with the model's own chat template,
one behind the other, and only the answers' tokens are scored: a fine-tune on answers
was never taught to predict questions, and what it thinks of them is noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from outpost_runtime.documents import Reader, parse_json_object
from outpost_runtime.errors import InvalidInputError
from outpost_runtime.text.chat import Message

from outpost_export.errors import RecipeError

DIALOGUES_SUFFIX = ".jsonl"

Encode = Callable[[str], list[int]]
Render = Callable[[list[Message]], str]


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


def read_evaluation(path: Path) -> str:
    """Return the contents of an evaluation file.

    Raises:
        RecipeError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The evaluation text {path} cannot be read: {error}.") from error


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
