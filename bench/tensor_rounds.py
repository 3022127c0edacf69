"""The measurements of one run: all servers started, then asked in turn, round by round."""

import base64
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.progress import say
from bench.tensor_answers import largest_difference, reference
from bench.tensor_material import Model
from bench.tensor_servers import Contestant, Running
from bench.workers import Launch, Worker, start


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        callers: Numbers of callers that ask side by side.
        seconds: Of every stretch of load; a shorter one before it is not counted.
    """

    rounds: int
    callers: tuple[int, ...]
    seconds: float
    warm_up_seconds: float


FULL = Plan(rounds=5, callers=(1, 8, 32), seconds=3.0, warm_up_seconds=0.5)
QUICK = Plan(rounds=1, callers=(1, 8), seconds=0.5, warm_up_seconds=0.1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What is asked for at once."""

    model: str
    callers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a stretch of load showed.

    Attributes:
        rate: Requests per second.
        median: Seconds within which half of the requests were answered.
        slowest: Seconds within which 99 of 100 were.
        generator: The load generator's own processor seconds per request.
    """

    rate: float
    median: float
    slowest: float
    generator: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a run found, by contestant.

    Attributes:
        differences: By model, the largest one to ONNX Runtime's own answers.
        figures: One per round. A model that a contestant cannot serve is missing.
    """

    differences: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    peak_megabytes: dict[str, float] = field(default_factory=dict)
    figures: dict[str, dict[Cell, list[Figures]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )


def measure(
    plan: Plan, everybody: Sequence[Contestant], models: Sequence[Model], scratch: Path
) -> Measured:
    """Measure everybody.

    Args:
        scratch: An empty folder.
    """
    measured = Measured()
    with ExitStack() as stack:
        servers = {
            contestant: stack.enter_context(_serving(contestant, models, scratch / str(index)))
            for index, contestant in enumerate(everybody)
        }
        _compare_answers(servers, models, measured)
        generator = stack.enter_context(closing(_generator(models, scratch / "requests.json")))
        for number in range(plan.rounds):
            say(f"round {number + 1} of {plan.rounds}")
            for model in models:
                _round(plan, servers, model, generator, measured)
        for contestant, server in servers.items():
            measured.peak_megabytes[contestant.name] = server.peak_megabytes()
    return measured


def _serving(
    contestant: Contestant, models: Sequence[Model], folder: Path
) -> AbstractContextManager[Running]:
    say(f"starting {contestant.name}")
    folder.mkdir()
    return contestant.serve(folder, contestant.models(models))


def _compare_answers(
    servers: Mapping[Contestant, Running], models: Sequence[Model], measured: Measured
) -> None:
    for model in models:
        say(f"answers of {model.name}")
        expected = reference(model)
        for contestant, server in _able(servers, model):
            difference = largest_difference(model, server.address, expected)
            measured.differences[contestant.name][model.name] = difference


def _generator(models: Sequence[Model], path: Path) -> Worker:
    requests = {
        model.name: [base64.b64encode(request).decode("ascii") for request in model.requests]
        for model in models
    }
    path.write_text(json.dumps(requests), "ascii")
    launch = Launch(name="load generator", module="bench.load_worker", arguments=(str(path),))
    return start(launch)


def _round(
    plan: Plan,
    servers: Mapping[Contestant, Running],
    model: Model,
    generator: Worker,
    measured: Measured,
) -> None:
    """Take turns as often as can be: everybody with so many callers, then with more of them."""
    for callers in plan.callers:
        cell = Cell(model=model.name, callers=callers)
        for contestant, server in _able(servers, model):
            _press(generator, server, cell, plan.warm_up_seconds)
            figures = _press(generator, server, cell, plan.seconds)
            measured.figures[contestant.name][cell].append(figures)


def _press(generator: Worker, server: Running, cell: Cell, seconds: float) -> Figures:
    rate = generator.ask(
        "press", address=server.address, model=cell.model, callers=cell.callers, seconds=seconds
    )
    return Figures(
        rate=rate,
        median=generator.ask("wait", share=0.5),
        slowest=generator.ask("wait", share=0.99),
        generator=generator.ask("cost"),
    )


def _able(
    servers: Mapping[Contestant, Running], model: Model
) -> Iterator[tuple[Contestant, Running]]:
    for contestant, server in servers.items():
        if contestant.models([model]):
            yield contestant, server
