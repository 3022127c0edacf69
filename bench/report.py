"""What a run says: medians, ratios, and who is of equal quality. Pure."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from bench.contestants import OURS, Contestant
from bench.rounds import (
    BANDWIDTH,
    COLD,
    WARM,
    Measured,
    Plan,
    beside_remote_key,
    decode_key,
    prefill_key,
    remote_key,
)

EQUAL_QUALITY = 0.01
"""A peer whose perplexity is further above the checkpoint's is not of equal quality."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One thing that was measured of everybody.

    Attributes:
        values: By contestant, one per round, or a single one if it was measured once; NaN where
            the contestant cannot do it.
        ours: Who is compared with the others.
    """

    title: str
    values: dict[str, list[float]]
    smaller_is_better: bool = False
    ours: str = OURS

    def median(self, name: str) -> float:
        """Return a contestant's median."""
        return _median(self.values[name])

    def ratios(self, peer: str) -> list[float]:
        """Return, per round, how many times better ours is than a peer."""
        pairs = zip(self.values[self.ours], self.values[peer], strict=True)
        if self.smaller_is_better:
            return [its / own for own, its in pairs]
        return [own / its for own, its in pairs]

    def best(self, names: Sequence[str]) -> str:
        """Return who of some contestants is best."""
        able = [name for name in names if not math.isnan(self.median(name))]
        return (min if self.smaller_is_better else max)(able, key=self.median)


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """Tokens per second of the engine itself and of a client over gRPC, medians."""

    streams: int
    engine: float
    client: float
    ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a run says."""

    plan: Plan
    contestants: Sequence[Contestant]
    measured: Measured

    @property
    def names(self) -> list[str]:
        """Everybody."""
        return [contestant.name for contestant in self.contestants]

    @property
    def peers(self) -> list[str]:
        """Everybody else's engines."""
        return [contestant.name for contestant in self.contestants if contestant.peer]

    @property
    def equal_peers(self) -> list[str]:
        """The peers of equal quality."""
        return [name for name in self.peers if self.is_equal_quality(name)]

    def increase(self, name: str) -> float:
        """Return how far a perplexity is above the checkpoint's, as a share."""
        return self.measured.perplexity[name] / self.measured.checkpoint_perplexity - 1

    def is_equal_quality(self, name: str) -> bool:
        """Whether a perplexity is close enough to compare speeds."""
        return self.increase(name) <= EQUAL_QUALITY

    def decodes(self) -> list[Measure]:
        """Return tokens per second of all streams together, by number of streams."""
        return [self._measure(decode_key(count)) for count in self.plan.streams]

    def speeds(self) -> list[Measure]:
        """Return all that was measured in rounds."""
        prefills = [self._measure(prefill_key(length)) for length in self.plan.prefills]
        waits = [self._measure(key, smaller_is_better=True) for key in (COLD, WARM)]
        return [*self.decodes(), *prefills, *waits]

    def costs(self) -> list[Measure]:
        """Return what was measured once: bytes on disk and in memory."""
        on_disk = {
            contestant.name: [contestant.model_bytes / 1e6] for contestant in self.contestants
        }
        in_memory = {name: [self.measured.peak_megabytes[name]] for name in self.names}
        return [
            Measure(title="model, MB", values=on_disk, smaller_is_better=True),
            Measure(title="peak memory, MB", values=in_memory, smaller_is_better=True),
        ]

    @property
    def bandwidths(self) -> list[float]:
        """The memory's bytes per second, as often as it was measured."""
        return [value for name in self.names for value in self.measured.series[name][BANDWIDTH]]

    def bandwidth_share(self, contestant: Contestant) -> float:
        """Return the share of the memory's bandwidth that one stream's decoding reads.

        The head of this model is its embedding: a token reads every weight once, if its head is
        not screened.
        """
        series = self.measured.series[contestant.name]
        speeds = series[decode_key(self.plan.streams[0])]
        pairs = zip(speeds, series[BANDWIDTH], strict=True)
        read = contestant.model_bytes - contestant.unread_bytes
        return _median([read * speed / limit for speed, limit in pairs])

    def remotes(self) -> Iterator[Remote]:
        """Yield what gRPC costs, by number of streams."""
        series = self.measured.series[OURS]
        for count in self.plan.remote_streams:
            engine, client = series[beside_remote_key(count)], series[remote_key(count)]
            ratios = [seen / made for seen, made in zip(client, engine, strict=True)]
            yield Remote(
                streams=count,
                engine=_median(engine),
                client=_median(client),
                ratio=_median(ratios),
            )

    def json(self) -> str:
        """Return everything for programs, every round's values included."""
        engines = {contestant.name: self._described(contestant) for contestant in self.contestants}
        found = {
            "plan": asdict(self.plan),
            "checkpoint_perplexity": self.measured.checkpoint_perplexity,
            "engines": engines,
        }
        return json.dumps(found, indent=1) + "\n"

    def _measure(self, key: str, *, smaller_is_better: bool = False) -> Measure:
        values = {name: self.measured.series[name][key] for name in self.names}
        return Measure(title=key, values=values, smaller_is_better=smaller_is_better)

    def _described(self, contestant: Contestant) -> dict[str, object]:
        name = contestant.name
        rounds = {
            key: [None if math.isnan(value) else value for value in values]
            for key, values in self.measured.series[name].items()
        }
        return {
            "model_bytes": contestant.model_bytes,
            "perplexity": self.measured.perplexity[name],
            "equal_quality": self.is_equal_quality(name),
            "peak_megabytes": self.measured.peak_megabytes[name],
            "bandwidth_share": self.bandwidth_share(contestant),
            "rounds": rounds,
        }


def median_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the least and the most."""
    return _median(values), min(values), max(values)


def _median(values: Sequence[float]) -> float:
    # One NaN makes all of it NaN: who fails in one round has no figure.
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)
