"""What a server tells Prometheus about itself, on HTTP ``/metrics``."""

from collections.abc import Callable, Iterator
from http.server import HTTPServer

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from outpost_runtime.errors import ConfigurationError
from outpost_runtime.text.engine import EngineState
from outpost_runtime.text.request import FinishEvent

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH_SIZES = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)
_SHARES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1)


class Metrics:
    """One server's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "outpost_calls", "Calls ended, by method and status", ["method", "code"],
            registry=self.registry,
        )  # fmt: skip
        self._queue_wait = self._histogram("queue_wait_seconds", "Wait before the first run")
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "Submission to first token"
        )
        self._per_token = self._histogram(
            "time_per_output_token_seconds", "Mean time per token after the first", _TOKEN_SECONDS
        )
        self._batch_size = self._histogram(
            "batch_size", "Answers that shared a run, mean of an answer", _BATCH_SIZES
        )
        self._cache_hits = self._histogram(
            "cached_prompt_share", "Share of a prompt that was remembered", _SHARES
        )
        self._acceptance = self._histogram(
            "speculation_acceptance", "Share of guessed tokens that were right", _SHARES
        )
        self._tokens = Counter(
            "outpost_tokens",
            "Tokens of completed answers: prompt, cached, generated, drafted, accepted",
            ["model", "kind"],
            registry=self.registry,
        )  # fmt: skip
        self._models = Gauge(
            "outpost_model_info", "Served bundles", ["model", "version", "target", "digest"],
            registry=self.registry,
        )  # fmt: skip

        self._engines: dict[str, Callable[[], EngineState]] = {}
        self.registry.register(_Engines(self._engines))

    def count(self, method: str, code: grpc.StatusCode) -> None:
        """Count a call that has ended."""
        self._calls.labels(method, code.name).inc()

    def serves(self, model: str, version: str, target: str, digest: str) -> None:
        """Tell that a bundle is served."""
        self._models.labels(model, version, target, digest).set(1)

    def finished(self, model: str, event: FinishEvent) -> None:
        """Take in the timings of a completed answer."""
        self._queue_wait.labels(model).observe(event.queue_seconds)
        self._first_token.labels(model).observe(event.first_token_seconds)
        if event.generated_tokens > 1:
            self._per_token.labels(model).observe(event.seconds_per_token)
        self._batch_size.labels(model).observe(event.mean_batch_size)
        self._cache_hits.labels(model).observe(event.cached_tokens / event.prompt_tokens)
        if event.drafted_tokens:
            share = event.accepted_tokens / event.drafted_tokens
            self._acceptance.labels(model).observe(share)
        for kind in ("prompt", "cached", "generated", "drafted", "accepted"):
            self._tokens.labels(model, kind).inc(getattr(event, f"{kind}_tokens"))

    def watch(self, model: str, state: Callable[[], EngineState]) -> None:
        """Show what a text engine is doing whenever somebody asks."""
        self._engines[model] = state

    def listen(self, host: str, port: int) -> HTTPServer:
        """Serve ``/metrics`` from a thread of its own until the returned server is shut down.

        Raises:
            ConfigurationError: The address cannot be bound.
        """
        try:
            server, _ = start_http_server(port, host, self.registry)
        except OSError as error:
            raise ConfigurationError(
                f"Metrics cannot listen on {host}:{port}: {error.strerror or error}.",
                hint="Choose another address with --metrics-address.",
            ) from error
        http_server: HTTPServer = server
        return http_server

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(
            f"outpost_text_{name}", text, ["model"], buckets=buckets, registry=self.registry
        )


class _Engines(Collector):
    """Gauges read from the engines when Prometheus asks."""

    _GAUGES = (
        ("live", "outpost_text_live", "Requests that have a row of key/value memory"),
        ("waiting", "outpost_text_waiting", "Requests in the queue"),
        ("key_value_use", "outpost_text_key_value_use", "Share of the rows' tokens in use"),
        ("cache_use", "outpost_text_cache_use", "Share of the prefix cache's blocks in use"),
    )

    def __init__(self, engines: dict[str, Callable[[], EngineState]]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges (prometheus_client's protocol)."""
        states = {model: state() for model, state in self._engines.items()}
        for attribute, name, text in self._GAUGES:
            family = GaugeMetricFamily(name, text, labels=["model"])
            for model, state in states.items():
                family.add_metric([model], getattr(state, attribute))
            yield family
