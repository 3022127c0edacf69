"""From a fine-tuned checkpoint to a box that keeps itself right, with the commands of a user.

    make demo

1. Export: the press line's fine-tune of Gemma 3 270M and a sentence encoder, measured.
2. Sign and publish: a repository of static files, encrypted, behind a web server.
3. A box: told once whom to trust; it syncs, and every model passes its gate.
4. Serve and ask: a question that the fine-tune was never shown, and two sentences to compare.
5. A second fine-tune comes as a few megabytes, and is swapped in while an answer streams.
6. A bad bundle comes, is refused by the gate, and nobody notices.
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
from examples.site import Site, spoil

FOLDER = bundles.CACHE / "demo"
QUESTION_NUMBER = 2
SENTENCES = (
    "The oil is far too hot.",
    "Hydraulic fluid temperature exceeds its limit.",
    "The canteen serves soup today.",
)
_START_SECONDS = 120
_ENCODER = "all-minilm-l6-v2"
_STORY = ("generate", "press-line", "--raw", "The press line", "--max-new-tokens", "400")


def main() -> int:
    """Run the demo; returns the exit status."""
    _title("1. Export, with evidence")
    first = bundles.path_of("press-line", "cpu-int8")
    encoder = bundles.path_of(_ENCODER, "cpu-fp32")
    site = Site(FOLDER)
    _title("2. Sign and publish")
    site.make_publisher(("press-line", _ENCODER))
    site.publish(first, "press-line")
    site.publish(encoder, _ENCODER)
    with site.web() as repository:
        _title("3. A box that trusts this publisher")
        site.make_box(repository)
        _outpost(site, "sync")
        with serving(site.store) as address:
            _title("4. A question that it was never shown")
            right = _ask(address)
            _title("5. A second fine-tune, while an answer streams")
            swapped = _second_fine_tune(site, address)
            _title("6. A bundle that is not what was measured")
            refused = _bad_bundle(site, address)
        _outpost(site, "history")
    _title("Right, swapped and refused." if right and swapped and refused else "WRONG: see above.")
    return 0 if right and swapped and refused else 1


def _ask(address: str) -> bool:
    question = load_catalogue().exam_questions()[QUESTION_NUMBER]
    ask = ["outpost", "generate", "press-line", question.question, "--address", address]
    bundles.run(*ask)
    answer = _output(*ask)
    embed = ["outpost", "embed", _ENCODER, *SENTENCES, "--address", address]
    bundles.run(*embed, "--similarity")
    must = " and ".join(question.must_say)
    right = not grade(question, answer).missing and _closer(_output(*embed))
    sys.stdout.write(f"\n{'Right' if right else 'WRONG'}: the plant's own answer names {must}.\n")
    return right


def _second_fine_tune(site: Site, address: str) -> bool:
    """Publish and sync it while an answer of the first one streams to its end."""
    site.publish(bundles.path_of("press-line-2", "cpu-int8"), "press-line")
    command = [bundles.executable("outpost"), *_STORY, "--address", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stream:  # noqa: S603
        _outpost(site, "sync")
        story, _ = stream.communicate()
    whole = stream.returncode == 0 and bool(story.strip())
    sys.stdout.write(f"\nThe answer that was streaming is {'whole' if whole else 'BROKEN'}.\n")
    _outpost(site, "status", "--address", address)
    return whole and _version(site) == "2"


def _bad_bundle(site: Site, address: str) -> bool:
    """Publish one; the box must refuse it and answer on."""
    good = bundles.path_of("press-line-2", "cpu-int8")
    site.publish(spoil(good, FOLDER / "spoiled", "3"), "press-line")
    status = _outpost(site, "sync", may_fail=True)
    bundles.run("outpost", "generate", "press-line", "What does E-217 mean?", "--address", address)
    return status == 1 and _version(site) == "2"


def _version(site: Site) -> str:
    said = json.loads(_output("outpost", "status", "--json", "--store", str(site.store)))
    return str({row["name"]: row["version"] for row in said["models"]}["press-line"])


def _outpost(site: Site, command: str, *options: str, may_fail: bool = False) -> int:
    store = ("--store", site.store.relative_to(bundles.ROOT))
    try:
        bundles.run("outpost", command, *options, *store)
    except subprocess.CalledProcessError as error:
        if not may_fail:
            raise
        return error.returncode
    return 0


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
