"""``outpost generate`` and ``outpost embed``: clients of a running server."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from outpost.v1 import text_pb2

from outpost_runtime.cli.connecting import add_server_options, connected
from outpost_runtime.client import Client
from outpost_runtime.errors import InvalidInputError, UnsupportedError

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_NUMBERS = {
    "max_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "seed": int,
}
_CONSTRAINTS = {
    "json_schema": "a JSON schema",
    "regex": "a regular expression",
    "grammar": "a grammar in llguidance's dialect of Lark",
}


def add_commands(commands: "Commands") -> None:
    """Describe the commands of this file."""
    generate = commands.add_parser(
        "generate",
        help="ask a text model; the answer streams to the terminal",
        description="The prompt is sent as a chat message if the model has a chat template, "
        "and as it is otherwise or with --raw.",
    )
    generate.add_argument("model", metavar="MODEL")
    generate.add_argument("prompt", metavar="PROMPT")
    generate.add_argument("--raw", action="store_true", help="send the prompt without a template")
    generate.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT", help="may repeat")
    generate.add_argument("--adapter", metavar="NAME", help="an adapter loaded for the model")
    generate.add_argument("--batch", action="store_true", help="let interactive requests go first")
    forms = generate.add_mutually_exclusive_group()
    for name, text in _CONSTRAINTS.items():
        option = f"--{name.replace('_', '-')}"
        forms.add_argument(option, metavar="TEXT", help=f"{text} for the answer, or @FILE")
    for name, kind in _NUMBERS.items():
        generate.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar=kind.__name__.upper()
        )
    add_server_options(generate)
    generate.set_defaults(run=_generate)
    embed = commands.add_parser("embed", help="turn texts into vectors, one JSON list per line")
    embed.add_argument("model", metavar="MODEL")
    embed.add_argument("texts", nargs="+", metavar="TEXT")
    embed.add_argument(
        "--similarity", action="store_true", help="print how similar the texts are instead"
    )
    add_server_options(embed)
    embed.set_defaults(run=_embed)


def _generate(parsed: argparse.Namespace) -> int:
    request = _request(parsed)
    with connected(parsed) as client:
        try:
            _stream(client, request)
        except UnsupportedError:
            if parsed.raw or parsed.system:
                raise
            request.prompt = parsed.prompt  # replaces the chat: they share a oneof
            _stream(client, request)
    return 0


def _request(parsed: argparse.Namespace) -> text_pb2.GenerateRequest:
    request = text_pb2.GenerateRequest()
    try:
        request.model = parsed.model
        for name in _NUMBERS:
            if getattr(parsed, name) is not None:
                setattr(request.parameters, name, getattr(parsed, name))
        request.parameters.stop.extend(parsed.stop)
        request.adapter = parsed.adapter or ""
        if parsed.batch:
            request.priority = text_pb2.PRIORITY_BATCH
        _set_input(request, parsed)
        _set_constraint(request, parsed)
    except (ValueError, UnicodeError) as error:
        raise InvalidInputError(f"An argument cannot be sent: {error}.") from error
    return request


def _set_input(request: text_pb2.GenerateRequest, parsed: argparse.Namespace) -> None:
    if parsed.raw:
        request.prompt = parsed.prompt
        return
    if parsed.system:
        request.chat.messages.add(role="system", content=parsed.system)
    request.chat.messages.add(role="user", content=parsed.prompt)


def _set_constraint(request: text_pb2.GenerateRequest, parsed: argparse.Namespace) -> None:
    for name in _CONSTRAINTS:
        if getattr(parsed, name) is not None:
            setattr(request.constraint, name, _text_or_file(getattr(parsed, name)))


def _text_or_file(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text("utf-8")
    except OSError as error:
        raise InvalidInputError(f"{text[1:]} cannot be read: {error.strerror}.") from error
    except UnicodeError as error:
        raise InvalidInputError(f"{text[1:]} is not UTF-8 text.") from error


def _stream(client: Client, request: text_pb2.GenerateRequest) -> None:
    for response in client.generate(request):
        if response.HasField("summary"):
            sys.stdout.write("\n")
            sys.stdout.flush()
            sys.stderr.write(_describe(response.summary))
        else:
            sys.stdout.write(response.piece.text)
            sys.stdout.flush()


def _describe(summary: text_pb2.Summary) -> str:
    usage, timings = summary.usage, summary.timings
    first = timings.time_to_first_token_seconds
    speed = usage.generated_tokens / timings.decode_seconds if timings.decode_seconds else 0.0
    reason = text_pb2.FinishReason.Name(summary.finish_reason)
    ended = reason.removeprefix("FINISH_REASON_").lower().replace("_", " ")
    remembered = f" ({usage.cached_tokens} remembered)" if usage.cached_tokens else ""
    return (
        f"[{usage.prompt_tokens} prompt tokens{remembered}, first token after {first:.2f} s, "
        f"{usage.generated_tokens} tokens at {speed:.0f}/s, ended by {ended}]\n"
    )


def _embed(parsed: argparse.Namespace) -> int:
    with connected(parsed) as client:
        vectors = client.embed(parsed.model, parsed.texts)
    if parsed.similarity:
        sys.stdout.write(_similarities(parsed.texts, np.array(vectors)))
        return 0
    for vector in vectors:
        sys.stdout.write(json.dumps(vector) + "\n")
    return 0


def _similarities(texts: list[str], vectors: np.ndarray) -> str:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    lines = []
    for text, row in zip(texts, unit @ unit.T, strict=True):
        lines.append("  ".join(f"{value:6.3f}" for value in row) + f"  {text}\n")
    return "".join(lines)
