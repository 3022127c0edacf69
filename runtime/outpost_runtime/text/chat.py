"""Chat messages to a prompt, by the bundle's own template.

Templates are Jinja as transformers renders them: blocks trimmed, ``tools`` and
``documents`` None, ``raise_exception``, ``strftime_now`` and ``tojson`` at hand,
``{% generation %}`` without effect. They run in Jinja's immutable sandbox: a bundle's
template can shape text and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
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
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
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
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except Exception as error:  # a template is foreign code and raises what it likes
            raise InvalidInputError(f"The chat template refuses the messages: {error}.") from error


class _Generation(Extension):
    """``{% generation %}`` marks what was trained on; for a prompt its body simply stands there."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[Node]:
        """Return the nodes of the body (Jinja's own signature)."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates call it so
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - people mean the time on their wall


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
