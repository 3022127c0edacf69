"""Engines under measurement: each in a process of its own, asked one thing at a time.

A worker reads one JSON object per line from standard input, ``{"task": …, …}``, and
answers with one line ``{"value": number}``. All of them are loaded before the first
measurement and take turns, so that a slow minute of the machine hits everybody.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

Task = Callable[..., float]


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


def start(name: str, python: Path, module: str, *arguments: object) -> Worker:
    """Start a worker and wait until it has loaded its model."""
    command = [str(python), "-m", module, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    worker = Worker(name=name, process=process)
    worker.ask("ready")
    return worker


def answer(tasks: dict[str, Task]) -> None:
    """Be a worker: answer until standard input ends."""
    everything: dict[str, Task] = {"ready": lambda: 1.0, **tasks}
    for line in sys.stdin:
        request = json.loads(line)
        value = everything[request.pop("task")](**request)
        sys.stdout.write(json.dumps({"value": value}) + "\n")
        sys.stdout.flush()
