"""Schemas, regular expressions and grammars in llguidance's notation, and its faults in ours."""

import enum
import json
import re
from typing import Any

import llguidance
from llguidance import LLMatcher, LLTokenizer

from outpost_runtime.documents import parse_json_object
from outpost_runtime.errors import InvalidInputError

MAX_CONSTRAINT_CHARACTERS = 64 << 10
"""Longest schema, regular expression or grammar that is read."""

# Of the parser, per place and per token: ambiguous grammars grow, and a whole batch waits.
_ROW_ITEMS = 1200  # 300 optional properties
_STEP_ITEMS = 10_000  # some 30 ms
_LONGEST_REASON = 200
_LONGEST_EXCERPT = 20


class ConstraintKind(enum.Enum):
    r"""How the form of an answer is written down; the value is its name in messages.

    * ``JSON_SCHEMA``: draft 2020-12 as llguidance reads it. Unknown keywords are ignored, known
      ones that cannot be kept are refused. Properties come in the schema's order, then others;
      of the others one may come twice. Answers are compact: no space outside of strings.
      Numbers end after some 20 digits, and near the limit of an answer all that is open is closed.
    * ``REGEX``: the syntax of Rust's regex crate without look-around and ``\b``; the whole
      answer matches.
    * ``GRAMMAR``: llguidance's dialect of Lark, starting at the rule ``start``. Whitespace is as
      free as the grammar leaves it, also inside of its ``%json``.
    """

    JSON_SCHEMA = "JSON schema"
    REGEX = "regular expression"
    GRAMMAR = "grammar"


_HINTS = {
    ConstraintKind.JSON_SCHEMA: "Correct the schema there, or leave the keyword out.",
    ConstraintKind.REGEX: "The syntax is that of Rust's regex crate, without look-around and \\b.",
    ConstraintKind.GRAMMAR: "The syntax is llguidance's dialect of Lark.",
}


def to_source(kind: ConstraintKind, text: str) -> str:
    """Return llguidance's JSON notation of a schema, regular expression or grammar."""
    if len(text) > MAX_CONSTRAINT_CHARACTERS:
        raise InvalidInputError(
            f"The {kind.value} has {len(text):,} characters; "
            f"at most {MAX_CONSTRAINT_CHARACTERS:,} are read."
        )
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"The {kind.value} is not valid Unicode: {error}.") from error
    match kind:
        case ConstraintKind.JSON_SCHEMA:
            return schema_source(_read_schema(data))
        case ConstraintKind.REGEX:
            (grammar,) = json.loads(LLMatcher.grammar_from_regex(text))["grammars"]
            return _grammar_source(grammar["lark_grammar"])
        case ConstraintKind.GRAMMAR:
            return _grammar_source(text)


def _read_schema(data: bytes) -> dict[str, Any]:
    schema = parse_json_object(data, path="The JSON schema").raw()
    if "x-guidance" in schema:
        raise InvalidInputError(
            "The JSON schema has the key 'x-guidance' at its top.",
            hint="Leave it out: JSON is always compact here and schemas are kept strictly.",
        )
    return schema


def schema_source(schema: dict[str, Any]) -> str:
    """Return the same for a schema that has been parsed."""
    compact = schema | {"x-guidance": {"whitespace_flexible": False}}
    try:
        return _grammar_source("start: @schema", {"name": "schema", "json_schema": compact})
    except ValueError as error:
        raise InvalidInputError(f"The JSON schema is wrong: {error}.") from error


def _grammar_source(lark: str, *others: dict[str, Any]) -> str:
    # Forcing would tokenize the text that must follow, and believe what comes back: the names of
    # special tokens become those tokens, and U+2581 a space. Behind the rest it is the last word.
    lark += '\n%llguidance {"no_forcing": true}'
    return json.dumps({"grammars": [{"lark_grammar": lark}, *others]}, allow_nan=False)


def new_matcher(tokenizer: LLTokenizer, source: str) -> LLMatcher:
    """Return the library's parser of a source, bounded and silent; it may be in a fault."""
    limits = llguidance.LLParserLimits(
        max_items_in_row=_ROW_ITEMS, step_max_items=_STEP_ITEMS, verbose_errors=False
    )
    return LLMatcher(tokenizer, source, log_level=0, limits=limits)


_POSITION = re.compile(r"(?:at )?(?P<line>\d+)\((?P<column>\d+)\): ")
_ADVICE = re.compile(r"; following special tokens|\. Enable ")  # not for our clients
_INVALID_REGEX = re.compile(r'invalid regex ".*" \(in regex\): ')
_REGEX_FAULT = re.compile(
    r"regex parse error:\n {4}(?P<pattern>.*)\n {4}(?P<before> *)\^+\nerror: (?P<reason>.*)"
)


def refusal(kind: ConstraintKind, fault: str, *, place: str) -> InvalidInputError:
    """Make one sentence of a fault, with its place as exactly as the library knows it."""
    places = [place[:_LONGEST_REASON]] if place else []
    reason = fault.partition("\n")[0]
    if position := _POSITION.match(reason):
        reason = _INVALID_REGEX.sub("", reason[position.end() :])
        if kind is ConstraintKind.GRAMMAR:  # else it is a line that we did not get
            places.append(f"line {position['line']}, column {position['column']}")
    if inner := _REGEX_FAULT.search(fault):
        reason = inner["reason"]
        places.append(f"'{inner['pattern'][len(inner['before']) :][:_LONGEST_EXCERPT]}'")
    reason = _ADVICE.split(reason)[0][:_LONGEST_REASON].rstrip(".")
    where = f" at {', at '.join(places)}" if places else ""
    return InvalidInputError(f"The {kind.value} is wrong{where}: {reason}.", hint=_HINTS[kind])
