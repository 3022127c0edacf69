"""Chat messages to a prompt, by the bundle's own template.

Templates are Jinja as transformers renders them (blocks trimmed, ``raise_exception``
and ``tojson`` available), in Jinja's immutable sandbox: a bundle's template can
shape text and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from outpost_runtime.errors import BundleError, InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation; which roles exist is the template's business."""

    role: str
    content: str


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: The template's text.
        special_tokens: Names such as ``bos_token`` with the tokens that they stand for.

    Raises:
        BundleError: The template is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise BundleError(f"The chat template is not valid: {error}.") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt, ending where the model's answer begins.

        Raises:
            InvalidInputError: There is no message, or the template refuses them.
        """
        if not messages:
            raise InvalidInputError("The chat has no messages.")
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=True, **self._special_tokens
            )
        except Exception as error:  # a template is foreign code and raises what it likes
            raise InvalidInputError(f"The chat template refuses the messages: {error}.") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
