"""What came from outside is compiled on trial first, in a process of its own.

llguidance's own limits do not hold: ``multipleOf`` with eight digits takes minutes and
gigabytes, a few hundred nested references end the process by a stack overflow. Here
they end a process that has nothing to lose; the next trial starts another. What has been
tried lately is not tried again, whatever came of it.
"""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from llguidance import LLTokenizer

from outpost_runtime.errors import BusyError, InvalidInputError, UnavailableError
from outpost_runtime.text.byte_tokens import byte_tokenizer
from outpost_runtime.text.notation import ConstraintKind, new_matcher, refusal, schema_source

TRIAL_SECONDS = 5
"""Processor time that one trial may take."""

TRIAL_BYTES = 512 << 20
"""Address space of the process that tries, all of it."""

_TRIAL_STACK_BYTES = 1 << 20  # an eighth of what our own threads have
_PLACE_SECONDS = 1
_MOST_VERDICTS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    """What a trial has ended with; ``fault`` is the library's word, or empty."""

    fault: str = ""
    place: str = ""
    is_too_complex: bool = False


class _Verdicts:
    """The verdicts that were asked for last; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[bytes, _Verdict] = OrderedDict()

    def find(self, key: bytes) -> _Verdict | None:
        with self._lock:
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
            return self._verdicts.get(key)

    def keep(self, key: bytes, verdict: _Verdict) -> None:
        with self._lock:
            self._verdicts[key] = verdict
            if len(self._verdicts) > _MOST_VERDICTS:
                self._verdicts.popitem(last=False)


class Trials:
    """The process that compiles first what came from outside; it starts with the first trial."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._verdicts = _Verdicts()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def knows(self, kind: ConstraintKind, text: str) -> bool:
        """Whether the verdict on a text is known, so that nobody waits for a trial; at once."""
        return self._verdicts.find(_key(kind, text)) is not None

    def run(self, kind: ConstraintKind, text: str, source: str, tokenizer: LLTokenizer) -> None:
        """Return when a text compiles; special tokens and their number are the tokenizer's.

        Args:
            source: The text in the library's notation.

        Raises:
            InvalidInputError: It does not, or not within the limits.
        """
        key = _key(kind, text)
        verdict = self._verdicts.find(key) or self._try(key, source, tokenizer)
        if self._closed:
            raise closing()
        if verdict.is_too_complex:
            raise InvalidInputError(
                f"The {kind.value} is too complex: to compile it takes more than {self._seconds} "
                f"seconds, {TRIAL_BYTES >> 20} MiB of memory or {_TRIAL_STACK_BYTES >> 20} MiB "
                "of stack.",
                hint="Simplify it: smaller bounds, less nesting, fewer intersections "
                "(allOf, patterns with lengths, &, ~), a smaller multipleOf.",
            )
        if verdict.fault:
            raise refusal(kind, verdict.fault, place=verdict.place)

    def close(self) -> None:
        """End the process; a trial in it fails."""
        self._closed = True
        if process := self._process:
            process.kill()
        with self._lock:
            self._forget()

    def _try(self, key: bytes, source: str, tokenizer: LLTokenizer) -> _Verdict:
        with self._lock:
            known = self._verdicts.find(key)
            if known is not None:  # somebody has asked the same meanwhile
                return known
            reply = _exchange(self._running(tokenizer), source)
            if reply is None:
                verdict = _Verdict(is_too_complex=True)
                if self._forget() == -signal.SIGKILL:  # by us, or where the machine lacks memory
                    return verdict
            else:
                verdict = _Verdict(fault=reply["fault"], place=reply["place"])
            self._verdicts.keep(key, verdict)
            return verdict

    def _running(self, tokenizer: LLTokenizer) -> "subprocess.Popen[bytes]":
        if self._closed:
            raise closing()
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._forget()
        try:
            self._process = _start()
        except OSError as error:
            raise BusyError(f"The process for trials did not start: {error}.") from error
        size = tokenizer.vocab_size
        special = [
            tokenizer.decode_str([id_]) for id_ in range(size) if tokenizer.is_special_token(id_)
        ]
        terms = {"seconds": self._seconds, "size": size, "special": special}
        if _exchange(self._process, terms) is None:
            raise BusyError("The process for trials did not start.")
        return self._process

    def _forget(self) -> int | None:
        """End the process; returns its exit status, as :mod:`subprocess` has it."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        process.communicate()  # waits and closes both pipes
        return process.returncode


def _key(kind: ConstraintKind, text: str) -> bytes:
    # Half of a surrogate pair is refused by whoever reads the text.
    return hashlib.sha256(f"{kind.value}\n{text}".encode("utf-8", "surrogatepass")).digest()


def closing() -> UnavailableError:
    """Return the error for whoever comes while the model is being closed."""
    return UnavailableError("The model is being closed.", hint="Try again in a moment.")


def _start() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "outpost_runtime.text.trials"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the library writes there when it fails
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # its threads count as address space
        start_new_session=True,
    )


def _exchange(process: "subprocess.Popen[bytes]", message: object) -> dict[str, str] | None:
    """Return the answer to a message, or None when the process ended instead."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None  # noqa: S101 - both are pipes
    assert stdout is not None  # noqa: S101
    try:
        stdin.write(json.dumps(message).encode() + b"\n")
        stdin.flush()
        reply: dict[str, str] = json.loads(stdout.readline())
    except (OSError, ValueError):
        return None
    return reply


def _serve(requests: IO[str], replies: IO[str]) -> None:
    """Be the process for trials: one line of JSON in, one out, until there are no more."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = TRIAL_BYTES if hard == resource.RLIM_INFINITY else min(TRIAL_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    threading.stack_size(_TRIAL_STACK_BYTES)
    terms = json.loads(requests.readline())
    tokenizer = byte_tokenizer(size=terms["size"], special=terms["special"])
    print(json.dumps({}), file=replies, flush=True)
    for line in requests:
        reply: dict[str, str] = {}
        # The signal's default action ends the process, whatever the library is doing.
        signal.setitimer(signal.ITIMER_PROF, terms["seconds"])
        trial = threading.Thread(target=_try, args=(tokenizer, json.loads(line), reply))
        trial.start()
        trial.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies, flush=True)


def _try(tokenizer: LLTokenizer, source: str, reply: dict[str, str]) -> None:
    fault = _fault(tokenizer, source)
    schema = json.loads(source)["grammars"][-1].get("json_schema")
    place = _place(tokenizer, schema, fault) if fault and schema else ""
    reply.update(fault=fault, place=place)


def _fault(tokenizer: LLTokenizer, source: str) -> str:
    """Return what the library says against a source, or nothing."""
    matcher = new_matcher(tokenizer, source)
    if not matcher.is_error():
        matcher.compute_bitmask()
    fault = matcher.get_error()
    return "nothing fits it" if fault.startswith("NoExtension") else fault


def _place(tokenizer: LLTokenizer, schema: dict[str, Any], fault: str) -> str:
    """Return the JSON pointer of the innermost schema that has the fault alone, or nothing.

    The library does not say where in a schema it found a fault.
    """
    wanted = fault.partition("\n")[0]
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    latest = time.process_time() + _PLACE_SECONDS
    place, inner = "", schema

    def has_fault(part: dict[str, Any]) -> bool:
        in_time = time.process_time() < latest
        return in_time and _fault(tokenizer, schema_source(definitions | part)).startswith(wanted)

    while found := next(((p, s) for p, s in _subschemas(inner) if has_fault(s)), None):
        place, inner = place + found[0], found[1]
    return place


_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems", "not", "contains", "propertyNames")


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas right inside of a schema, each with its JSON pointer (RFC 6901)."""
    for key, value in schema.items():
        parts: dict[str, Any] = {}
        if key in _MAPS and isinstance(value, dict):
            parts = {f"/{key}/{_escaped(name)}": part for name, part in value.items()}
        elif key in _LISTS and isinstance(value, list):
            parts = {f"/{key}/{index}": part for index, part in enumerate(value)}
        elif key in _SINGLE:
            parts = {f"/{key}": value}
        yield from ((place, part) for place, part in parts.items() if isinstance(part, dict))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
