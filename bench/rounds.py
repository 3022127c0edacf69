"""The measurements of one run: everybody once, then everybody in turn, round by round.

Only the engine whose turn it is runs: each turn starts its process, warms it up, measures and ends
it; ours has its server beside it at the end of its turn. Engines that wait in memory may change
what is measured: a system may take pages from a process that has been idle for a minute, or split
its huge pages (DAMON's page-out, on some virtual machines), which is not the same for all of them.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from outpost_runtime.bundle import read_bundle
from outpost_runtime.store import Store

from bench.bandwidth import read_bandwidth
from bench.contestants import OURS, Contestant
from bench.material import PREFIX_TOKENS, Material
from bench.progress import say
from bench.server import serving
from bench.workers import THREADS, Launch, Worker, start

BANDWIDTH = "bandwidth right before, bytes/s"
"""A measurement of the machine, taken before every engine's turn and kept with its others."""

_WARM_UP_TOKENS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        streams: Numbers of streams that make tokens side by side.
        remote_streams: The same for the client over gRPC.
        memory_streams: Streams of the process whose memory is looked at.
        tokens: Tokens that each stream makes.
        prefills: Lengths of prompts.
        evaluated: Tokens on which perplexity is measured.
    """

    rounds: int
    streams: tuple[int, ...]
    remote_streams: tuple[int, ...]
    memory_streams: int
    tokens: int
    prefills: tuple[int, ...]
    evaluated: int


FULL = Plan(
    rounds=5,
    streams=(1, 2, 4, 8, 16),
    remote_streams=(1, 8),
    memory_streams=8,
    tokens=32,
    prefills=(128, 512),
    evaluated=1024,
)
QUICK = Plan(
    rounds=1,
    streams=(1, 4),
    remote_streams=(1, 4),
    memory_streams=4,
    tokens=16,
    prefills=(128,),
    evaluated=96,
)

Series = dict[str, list[float]]
"""One value per round, by what was measured; see :func:`decode_key` and its like."""

COLD, WARM = "first token cold, s", "first token warm, s"


def decode_key(streams: int) -> str:
    """Name tokens per second of so many streams together."""
    return f"decode, {_streams(streams)}"


def prefill_key(length: int) -> str:
    """Name tokens per second of reading a prompt of so many tokens."""
    return f"prefill of {length}"


def remote_key(streams: int) -> str:
    """Name tokens per second that a client of the server sees."""
    return f"gRPC, {_streams(streams)}"


def beside_remote_key(streams: int) -> str:
    """Name tokens per second of the engine in its own process, asked right before the client."""
    return f"beside gRPC, {_streams(streams)}"


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a run found.

    Attributes:
        perplexity: By contestant, and of the checkpoint.
        peak_megabytes: By contestant.
        series: By contestant.
    """

    checkpoint_perplexity: float
    perplexity: dict[str, float] = field(default_factory=dict)
    peak_megabytes: dict[str, float] = field(default_factory=dict)
    series: dict[str, Series] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )


def measure(
    plan: Plan, everybody: Sequence[Contestant], material: Material, checkpoint: Path, scratch: Path
) -> Measured:
    """Measure everybody.

    Args:
        checkpoint: The model that all of them were made from.
        scratch: An empty folder.
    """
    say("perplexity of the checkpoint")
    ids = material.ids[: plan.evaluated]
    reference = Launch(
        name="checkpoint", module="bench.checkpoint_worker", arguments=(str(checkpoint),)
    )
    with _running(reference) as worker:
        measured = Measured(checkpoint_perplexity=worker.ask("perplexity", ids=ids))
    for contestant in everybody:
        _once(plan, contestant, material, measured)
    for number in range(plan.rounds):
        say(f"round {number + 1} of {plan.rounds}")
        for contestant in everybody:
            _turn(plan, contestant, material, measured, scratch)
    return measured


def _once(plan: Plan, contestant: Contestant, material: Material, measured: Measured) -> None:
    """Look at memory first: perplexity may need more of it than serving does."""
    say(f"memory and perplexity of {contestant.name}")
    with _running(contestant.launch, plan.memory_streams) as worker:
        prompts = material.prompts(plan.memory_streams)
        worker.ask("decode", prompts=prompts, tokens=plan.tokens)
        measured.peak_megabytes[contestant.name] = worker.ask("peak_megabytes")
        if contestant.weights_of:
            value = measured.perplexity[contestant.weights_of]
        else:
            value = worker.ask("perplexity", ids=material.ids[: plan.evaluated])
        measured.perplexity[contestant.name] = value


def _turn(
    plan: Plan, contestant: Contestant, material: Material, measured: Measured, scratch: Path
) -> None:
    found = {BANDWIDTH: read_bandwidth()}
    with _running(contestant.launch, max(plan.streams)) as worker:
        _warm_up(plan, worker, material)
        found |= _in_process(plan, worker, material)
        if contestant.name == OURS:
            with _client(plan, contestant, scratch) as client:
                found |= _remotely(plan, worker, client, material)
    for key, value in found.items():
        measured.series[contestant.name][key].append(value)


def _warm_up(plan: Plan, worker: Worker, material: Material) -> None:
    """Do once what is measured: an engine may prepare itself for every shape that it meets."""
    for count in plan.streams:
        worker.ask("decode", prompts=material.prompts(count), tokens=_WARM_UP_TOKENS)
    for length in (*plan.prefills, PREFIX_TOKENS):
        worker.ask("first_token", ids=material.unseen(length))


def _in_process(plan: Plan, worker: Worker, material: Material) -> dict[str, float]:
    found = {}
    for count in plan.streams:
        prompts = material.prompts(count)
        found[decode_key(count)] = worker.ask("decode", prompts=prompts, tokens=plan.tokens)
    for length in plan.prefills:
        seconds = worker.ask("first_token", ids=material.unseen(length))
        found[prefill_key(length)] = length / seconds
    prefix, (tail, other_tail) = material.unseen(PREFIX_TOKENS), material.tails()
    found[COLD] = worker.ask("first_token", ids=prefix + tail)
    found[WARM] = worker.ask("first_token", ids=prefix + other_tail)
    return found


def _remotely(plan: Plan, worker: Worker, client: Worker, material: Material) -> dict[str, float]:
    found = {}
    client.ask("decode", texts=material.texts(max(plan.remote_streams)), tokens=_WARM_UP_TOKENS)
    for count in plan.remote_streams:
        prompts, texts = material.prompts(count), material.texts(count)
        found[beside_remote_key(count)] = worker.ask("decode", prompts=prompts, tokens=plan.tokens)
        found[remote_key(count)] = client.ask("decode", texts=texts, tokens=plan.tokens)
    return found


@contextmanager
def _running(launch: Launch, *more: object) -> Iterator[Worker]:
    worker = start(launch, *more)
    try:
        yield worker
    finally:
        worker.close()


@contextmanager
def _client(plan: Plan, ours: Contestant, scratch: Path) -> Iterator[Worker]:
    folder = Path(ours.launch.arguments[0])
    store = scratch / "store"
    if not store.exists():
        Store(store).add(folder)
    streams, threads = str(max(plan.remote_streams)), str(THREADS)
    with serving(store, "--streams", streams, "--threads", threads) as server:
        model = read_bundle(folder).manifest.name
        launch = Launch(name="gRPC client", module="bench.grpc_worker")
        with _running(launch, server.address, model) as worker:
            yield worker
