"""Engines under measurement: each in a process of its own, asked one thing at a time.

A worker reads one JSON object per line from standard input, ``{"task": …, …}``, and
answers with one line ``{"value": number}``. They take turns (``rounds.py``), so that a slow
minute of the machine hits everybody.
What the numbers mean is decided here, once for all engines; an engine only says
when its tokens came. This file imports nothing that a peer's environment lacks.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

THREADS = 2
"""Of every engine, for prompts and for tokens."""

CONTEXT = 2048
"""Tokens that every stream of every engine can hold."""

ROOT = Path(__file__).parents[1]

Times = list[list[float]]
"""Per stream, the moment at which each of its tokens came (``time.perf_counter``)."""


class Engine(Protocol):
    """What is asked of everybody."""

    def first_token(self, ids: list[int]) -> None:
        """Read a prompt and make one token; what was read before may be used again."""

    def decode(self, prompts: list[list[int]], tokens: int) -> Times:
        """Answer all prompts side by side, greedily, ``tokens`` tokens each."""

    def perplexity(self, ids: list[int]) -> float:
        """Exponential of the mean negative log-probability of each next token."""


def decode_rate(times: Times) -> float:
    """Tokens per second of all streams together, while all of them run; NaN if they never do.

    From the moment at which the last stream has its first token to the moment at which
    the first stream ends. Each stream's own tokens in there are timed from its first
    to its last one, and the streams are added up: no token is counted half.
    """
    began, ended = max(stream[0] for stream in times), min(stream[-1] for stream in times)
    inside = [[moment for moment in stream if began <= moment <= ended] for stream in times]
    if any(len(stream) < 2 for stream in inside):  # noqa: PLR2004 - an interval has two ends
        return float("nan")
    return sum((len(stream) - 1) / (stream[-1] - stream[0]) for stream in inside)


def peak_megabytes(process: int | str = "self") -> float:
    """Most memory that a process had resident at once, mapped files included (VmHWM)."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def answer(engine: Engine) -> None:
    """Be a worker: answer until standard input ends."""
    answer_tasks(
        {
            "first_token": lambda ids: _seconds(lambda: engine.first_token(ids)),
            "decode": lambda prompts, tokens: decode_rate(engine.decode(prompts, tokens)),
            "perplexity": engine.perplexity,
        }
    )


def answer_tasks(tasks: dict[str, Callable[..., float]]) -> None:
    """Be a worker of another kind: answer these tasks, and what is asked of every worker."""
    everything = {"ready": lambda: 1.0, "peak_megabytes": peak_megabytes, **tasks}
    for line in sys.stdin:
        request = json.loads(line)
        value = everything[request.pop("task")](**request)
        sys.stdout.write(json.dumps({"value": value}) + "\n")
        sys.stdout.flush()


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How an engine is started.

    Attributes:
        python: Interpreter of the environment that has the engine.
        module: What is run in it, with ``arguments`` and what :func:`start` adds.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    python: Path = Path(sys.executable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A running engine."""

    name: str
    process: "subprocess.Popen[str]"

    def ask(self, task: str, **arguments: Any) -> float:
        """Return what the engine measured."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"The engine {self.name} died while it did {task}.")
        return float(json.loads(line)["value"])

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def start(launch: Launch, *more: object) -> Worker:
    """Start a worker, with more arguments, and wait until it has loaded its model."""
    command = [str(launch.python), "-m", launch.module, *launch.arguments, *map(str, more)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    worker = Worker(name=launch.name, process=process)
    worker.ask("ready")
    return worker


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens two prompts share."""
    pairs = zip(one, other, strict=False)
    return next(
        (index for index, (mine, its) in enumerate(pairs) if mine != its), min(len(one), len(other))
    )


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
