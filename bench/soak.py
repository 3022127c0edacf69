"""Half an hour of everything at once: does the server lose a request, a byte, a token?

    make soak                      # or: python -m bench.soak --minutes 3

A real server with a base model and an adapter; clients that chat (a third of them with
the adapter), send long prompts, run batch jobs, hang up in the middle, set deadlines that
are too short, ask for JSON, and repeat *canaries*: greedy requests whose tokens are known
from a quiet server and must never change, whatever else is in the batch. Every call must
end in one of the ways that its kind allows. Writes bench/results/soak.md and soak.png.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import matplotlib as mpl
from matplotlib import pyplot as plt
from outpost.v1 import adapters_pb2, adapters_pb2_grpc, text_pb2, text_pb2_grpc
from outpost_runtime.store import Store

from bench.server import Server, serving
from examples import bundles

BASE, ADAPTER = "gemma-3-270m", "press-line-adapter"
RESULTS = Path(__file__).with_name("results")
LOST_SECONDS = 900
"""Of a whole conversation, on a slow machine with a full queue; a hang is longer."""
WARM_UP_SHARE = 0.2

_TOPICS = ("the press", "hydraulic oil", "the north gate", "a spare part", "the night shift")
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "part": {"enum": ["pump", "valve", "gate", "sensor"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "urgent": {"type": "boolean"},
    },
    "required": ["part", "count", "urgent"],
    "additionalProperties": False,
}

_KEYS = set(_SCHEMA["properties"])
_ENDLESS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "note": {"type": "string"},
        "measured": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["note", "measured"],
    "additionalProperties": False,
}
"""What a small model never ends by itself: its answers are closed before their limit."""


@dataclass(kw_only=True, slots=True)
class Record:
    """What has happened so far."""

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Clients:
    """Who asks, and what is known of the answers."""

    text: Any  # asynchronous stubs; the generated types know only synchronous ones
    adapters: Any
    rng: random.Random
    record: Record
    canaries: dict[str, list[int]]


def _request(prompt: str, tokens: int, *, adapter: str = "") -> text_pb2.GenerateRequest:
    request = text_pb2.GenerateRequest(model=BASE, adapter=adapter, return_tokens=True)
    request.prompt = prompt
    request.parameters.max_new_tokens = tokens
    request.parameters.temperature = 0
    return request


async def _chat(clients: Clients) -> str:
    """Several turns, each with all that was said before."""
    adapter = clients.rng.choice(["", "", ADAPTER])
    said = f"A conversation about {clients.rng.choice(_TOPICS)}.\n"
    for turn in range(clients.rng.randint(1, 4)):
        said += f"Question {turn}: what should one know?\n"
        request = _request(said, clients.rng.randint(8, 48), adapter=adapter)
        request.parameters.temperature = 0.8
        said += "".join([r.piece.text async for r in _counted(clients, request)])
    return "ok"


async def _long(clients: Clients) -> str:
    words = " ".join(clients.rng.choice(_TOPICS) for _ in range(clients.rng.randint(100, 450)))
    async for _ in _counted(clients, _request(words, 8)):
        pass
    return "ok"


async def _batch(clients: Clients) -> str:
    request = _request(f"Report on {clients.rng.choice(_TOPICS)}:", 128)
    request.priority = text_pb2.PRIORITY_BATCH
    async for _ in _counted(clients, request):
        pass
    return "ok"


async def _hang_up(clients: Clients) -> str:
    wanted = clients.rng.randint(0, 20)
    call = clients.text.Generate(_request("Tell everything you know. ", 400))
    seen = 0
    async for _ in call:
        seen += 1
        if seen >= wanted:
            call.cancel()
            break
    return "ok"


async def _impatient(clients: Clients) -> str:
    seconds = clients.rng.uniform(0.01, 1.5)
    try:
        call = clients.text.Generate(_request("In haste: ", 100), timeout=seconds)
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        return "deadline"
    return "ok"


async def _structured(clients: Clients) -> str:
    request = _request(f"An order about {clients.rng.choice(_TOPICS)} as JSON: ", 80)
    request.constraint.json_schema = json.dumps(_SCHEMA)
    request.parameters.temperature = 1.0
    answer = "".join([r.piece.text async for r in _counted(clients, request)])
    order = json.loads(answer)
    if set(order) != _KEYS or order["count"] not in range(100):
        clients.record.wrong.append(f"structured: {answer!r}")
    return "ok"


async def _endless(clients: Clients) -> str:
    request = _request(f"A report on {clients.rng.choice(_TOPICS)} as JSON: ", 60)
    request.constraint.json_schema = json.dumps(_ENDLESS)
    request.parameters.temperature = 1.0
    answer = "".join([r.piece.text async for r in _counted(clients, request)])
    if set(json.loads(answer)) != set(_ENDLESS["required"]):
        clients.record.wrong.append(f"endless: {answer!r}")
    return "ok"


async def _canary(clients: Clients) -> str:
    prompt, expected = clients.rng.choice(list(clients.canaries.items()))
    tokens = await _tokens(clients, prompt)
    if tokens != expected:
        clients.record.wrong.append(f"canary {prompt!r}: {tokens} instead of {expected}")
    return "ok"


async def _reload(clients: Clients) -> str:
    await clients.adapters.Load(adapters_pb2.LoadAdapterRequest(name=ADAPTER))
    return "ok"


async def _tokens(clients: Clients, prompt: str) -> list[int]:
    request = _request(prompt, 24)
    return [t.id async for r in _counted(clients, request) for t in r.piece.tokens]


async def _counted(
    clients: Clients, request: text_pb2.GenerateRequest
) -> AsyncIterator[text_pb2.GenerateResponse]:
    started, first = time.monotonic(), True
    async for response in clients.text.Generate(request):
        if first:
            clients.record.first_token.append(time.monotonic() - started)
            first = False
        clients.record.tokens += len(response.piece.tokens)
        yield response


KINDS: dict[str, tuple[float, Callable[[Clients], Awaitable[str]]]] = {
    "chat": (0.22, _chat),
    "long prompt": (0.10, _long),
    "batch": (0.10, _batch),
    "hangs up": (0.15, _hang_up),
    "impatient": (0.12, _impatient),
    "structured": (0.07, _structured),
    "structured, endless": (0.05, _endless),
    "canary": (0.18, _canary),
    "reloads the adapter": (0.01, _reload),
}


async def _one(clients: Clients, kind: str) -> None:
    act = KINDS[kind][1]
    try:
        outcome = await asyncio.wait_for(act(clients), LOST_SECONDS)
    except TimeoutError:
        outcome = "LOST"
    except grpc.aio.AioRpcError as error:
        refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        outcome = "refused" if refused else f"FAILED {error.code().name}: {error.details()}"
    except ValueError as error:
        outcome = f"FAILED {error}"
    clients.record.ended[kind, outcome] += 1


async def _soak(server: Server, seconds: float, rate: float) -> tuple[Record, int]:
    record = Record()
    async with grpc.aio.insecure_channel(server.address) as channel:
        clients = Clients(
            text=text_pb2_grpc.TextStub(channel),
            adapters=adapters_pb2_grpc.AdaptersStub(channel),
            rng=random.Random(0),  # noqa: S311 - to repeat a run
            record=record,
            canaries={},
        )
        for topic in _TOPICS:
            prompt = f"What is to be done about {topic}, and who does it? " * 3
            clients.canaries[prompt] = await _tokens(clients, prompt)
        started, until = time.monotonic(), time.monotonic() + seconds
        tasks, next_look = set(), 0.0
        while (now := time.monotonic()) < until:
            weights = [share for share, _ in KINDS.values()]
            kind = clients.rng.choices(list(KINDS), weights)[0]
            task = asyncio.create_task(_one(clients, kind))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if now >= next_look:
                record.memory.append((now - started, server.resident_megabytes()))
                sys.stderr.write(f"\r{now - started:6.0f} s, {sum(record.ended.values())} ended")
                next_look = now + 5
            await asyncio.sleep(clients.rng.expovariate(rate))
        begun = len(tasks) + sum(record.ended.values())
        await asyncio.gather(*tasks)
    sys.stderr.write("\n")
    return record, begun


def main() -> int:
    """Run the soak; the exit status says whether everything was as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=0.6, help="requests begun per second")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        for name in (BASE, ADAPTER):
            Store(store).add(bundles.path_of(name, "cpu-int8"))
        with serving(store, "--threads", "2", "--streams", "8", "--kv-memory", "768") as server:
            record, begun = asyncio.run(_soak(server, parsed.minutes * 60, parsed.rate))
            time.sleep(1)
            left = _left(server)
    problems = _problems(record, begun, left)
    _write(record, parsed.minutes, parsed.rate, problems)
    sys.stdout.write("\n".join(problems or ["nothing lost, nothing wrong"]) + "\n")
    return bool(problems)


def _left(server: Server) -> float:
    with urllib.request.urlopen(server.metrics) as response:  # noqa: S310 - it is our own
        text = response.read().decode()
    return sum(
        float(v)
        for v in re.findall(r"^outpost_text_(?:live|waiting)\{.*\} (\S+)", text, re.MULTILINE)
    )


def _growth(record: Record) -> float:
    """Return the growth of memory from the second fifth to the last, as a share."""
    kept = [mb for _, mb in record.memory[int(len(record.memory) * WARM_UP_SHARE) :]]
    quarter = max(len(kept) // 4, 1)
    return statistics.median(kept[-quarter:]) / statistics.median(kept[:quarter]) - 1


def _problems(record: Record, begun: int, left: float) -> list[str]:
    found = [
        f"{kind}: {n} times {how}" for (kind, how), n in record.ended.items() if how[0].isupper()
    ]
    found += record.wrong[:10]
    if sum(record.ended.values()) != begun:
        found.append(f"{begun} requests begun, {sum(record.ended.values())} ended")
    if left:
        found.append(f"{left:.0f} requests are still in the engine")
    if _growth(record) > 0.02:  # noqa: PLR2004 - two percent
        found.append(f"memory grew by {_growth(record):.1%}")
    return found


def _summary(record: Record, minutes: float, rate: float, problems: list[str]) -> str:
    firsts = sorted(record.first_token)
    return (
        f"{minutes:g} minutes, {rate:g} requests a second, {record.tokens:,} tokens received; "
        f"time to first token: median {statistics.median(firsts):.2f} s, "
        f"p99 {firsts[int(len(firsts) * 0.99)]:.2f} s. Memory: "
        f"{record.memory[-1][1]:.0f} MB at the end, {_growth(record):+.1%} after warm-up. "
        f"Problems: {'; '.join(problems) or 'none'}."
    )


def _write(record: Record, minutes: float, rate: float, problems: list[str]) -> None:
    lines = [
        "| kind of request | how it ended | number |",
        "| --- | --- | ---: |",
        *(f"| {kind} | {how} | {n} |" for (kind, how), n in sorted(record.ended.items())),
        "",
        _summary(record, minutes, rate, problems),
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "soak.md").write_text("\n".join(lines), encoding="utf-8")
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 3))
    axes.plot([t / 60 for t, _ in record.memory], [mb for _, mb in record.memory])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory of the server, MB")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(RESULTS / "soak.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
