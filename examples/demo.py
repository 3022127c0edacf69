"""From a fine-tuned checkpoint to streamed tokens, with the commands that a user would type.

    make demo

1. Export: the press line's fine-tune of Gemma 3 270M and a sentence encoder, measured.
2. Store: both bundles, verified, in a store below .cache/.
3. Serve: one server on a free port of this machine.
4. Ask: a question that the fine-tune was never shown, and two sentences to compare.
"""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples import bundles
from examples.press_line.exam import grade
from examples.press_line.faults import load_catalogue

STORE = bundles.CACHE / "demo-store"
QUESTION_NUMBER = 2
SENTENCES = (
    "The oil is far too hot.",
    "Hydraulic fluid temperature exceeds its limit.",
    "The canteen serves soup today.",
)
_START_SECONDS = 120


def main() -> int:
    """Run the demo; returns the exit status."""
    question = load_catalogue().exam_questions()[QUESTION_NUMBER]
    _title("1. Export, with evidence")
    paths = [
        bundles.path_of("press-line", "cpu-int8"),
        bundles.path_of("all-minilm-l6-v2", "cpu-fp32"),
    ]
    _title("2. Into the device's store")
    store = STORE.relative_to(bundles.ROOT)
    for path in paths:
        bundles.run("outpost", "add", path.relative_to(bundles.ROOT), "--store", store)
    _title("3. Serve")
    with serving(STORE) as address:
        bundles.run("outpost", "status", "--store", store, "--address", address)
        _title("4. A question that it was never shown")
        ask = ["outpost", "generate", "press-line", question.question, "--address", address]
        bundles.run(*ask)
        answer = _output(*ask)
        bundles.run(
            "outpost", "embed", "all-minilm-l6-v2", *SENTENCES, "--similarity", "--address", address
        )
        vectors = _output("outpost", "embed", "all-minilm-l6-v2", *SENTENCES, "--address", address)
    right = not grade(question, answer).missing and _closer(vectors)
    must = " and ".join(question.must_say)
    _title(f"{'Right' if right else 'WRONG'}: the plant's own answer names {must}.")
    return 0 if right else 1


@contextmanager
def serving(store: Path, *options: str) -> Iterator[str]:
    """Serve a store on free ports while the context lasts; gives the gRPC address.

    Raises:
        RuntimeError: The server did not start; what it said is in the message.
    """
    shown = store.relative_to(bundles.ROOT)
    sys.stdout.write(f"\n$ outpost serve --store {shown} &\n")
    sys.stdout.flush()
    command = [bundles.executable("outpost"), "serve", "--store", str(store), *options]
    command += ["--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    log = store.with_suffix(".log")
    with log.open("w") as output:
        server = subprocess.Popen(command, stderr=output)  # noqa: S603 - our own command
    try:
        yield _address(server, log)
    finally:
        server.terminate()
        server.wait(timeout=30)


def _address(server: "subprocess.Popen[bytes]", log: Path) -> str:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        if found := re.search(r"serving .* on (\S+:\d+)\n", log.read_text()):
            return found.group(1)
        time.sleep(0.1)
    raise RuntimeError(f"The server did not start: {log.read_text()}")


def _output(command: str, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own command
        [bundles.executable(command), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


def _closer(lines: str) -> bool:
    first, same, other = (json.loads(line) for line in lines.splitlines())

    def product(vector: list[float]) -> float:
        return math.fsum(a * b for a, b in zip(first, vector, strict=True))

    return product(same) > product(other)


def _title(text: str) -> None:
    sys.stdout.write(f"\n=== {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
