"""What a server tells Prometheus about itself, on HTTP ``/metrics``."""

from collections.abc import Iterable, Iterator

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from outpost_runtime.opening import Model
from outpost_runtime.text.model import TextModel
from outpost_runtime.text.request import FinishEvent

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH_SIZES = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)
_SHARES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1)


class Metrics:
    """One server's metrics.

    Args:
        models: What is served, whenever it is asked.
    """

    def __init__(self, models: Iterable[Model]) -> None:
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
        self.registry.register(_Models(models))

    def count(self, method: str, code: grpc.StatusCode) -> None:
        """Count a call that has ended."""
        self._calls.labels(method, code.name).inc()

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

    def page(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(
            f"outpost_text_{name}", text, ["model"], buckets=buckets, registry=self.registry
        )


class _Models(Collector):
    """What is read from the models when Prometheus asks."""

    _TEXT = (
        ("live", "outpost_text_live", "Requests that have a row of key/value memory"),
        ("waiting", "outpost_text_waiting", "Requests in the queue"),
        ("key_value_use", "outpost_text_key_value_use", "Share of the rows' tokens in use"),
        ("cache_use", "outpost_text_cache_use", "Share of the prefix cache's blocks in use"),
    )
    _COUNTS = (
        ("inference_count", "outpost_inferences", "Rows of successful requests"),
        ("execution_count", "outpost_executions", "Runs of the model"),
    )
    _DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield everything (prometheus_client's protocol)."""
        models = list(self._models)
        yield _information(models)
        texts = [model for model in models if isinstance(model, TextModel)]
        states = {_name(model): model.engine.state() for model in texts}
        for attribute, name, text in self._TEXT:
            family = GaugeMetricFamily(name, text, labels=["model"])
            for model, state in states.items():
                family.add_metric([model], getattr(state, attribute))
            yield family
        yield from self._statistics(models)

    def _statistics(self, models: list[Model]) -> Iterator[CounterMetricFamily]:
        found = {_name(model): model.engine.statistics.snapshot() for model in models}
        for attribute, name, text in self._COUNTS:
            family = CounterMetricFamily(name, text, labels=["model"])
            for model, snapshot in found.items():
                family.add_metric([model], getattr(snapshot, attribute))
            yield family
        requests = CounterMetricFamily(
            "outpost_requests", "Requests, by outcome", labels=["model", "outcome"]
        )
        seconds = CounterMetricFamily(
            "outpost_request_seconds", "Where requests spent their time", labels=["model", "part"]
        )
        for model, snapshot in found.items():
            for outcome in ("success", "fail"):
                requests.add_metric([model, outcome], getattr(snapshot, outcome).count)
            for part in self._DURATIONS:
                seconds.add_metric([model, part], getattr(snapshot, part).ns / 1e9)
        yield requests
        yield seconds


def _information(models: list[Model]) -> GaugeMetricFamily:
    labels = ["model", "version", "target", "digest"]
    family = GaugeMetricFamily("outpost_model_info", "Served bundles", labels=labels)
    for model in models:
        manifest = model.bundle.manifest
        family.add_metric(
            [manifest.name, manifest.version, manifest.target, model.bundle.digest], 1
        )
    return family


def _name(model: Model) -> str:
    return model.bundle.manifest.name
