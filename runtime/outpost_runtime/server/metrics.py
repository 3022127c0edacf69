"""What a server tells Prometheus about itself, on HTTP ``/metrics``."""

from http.server import HTTPServer

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from outpost_runtime.errors import ConfigurationError
from outpost_runtime.text.request import FinishEvent

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
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
        self._tokens = Counter(
            "outpost_tokens", "Tokens of completed answers", ["model", "kind"],
            registry=self.registry,
        )  # fmt: skip
        self._models = Gauge(
            "outpost_model_info", "Served bundles", ["model", "version", "target", "digest"],
            registry=self.registry,
        )  # fmt: skip

    def count(self, method: str, code: grpc.StatusCode) -> None:
        """Count a call that has ended."""
        self._calls.labels(method, code.name).inc()

    def serves(self, model: str, version: str, target: str, digest: str) -> None:
        """Tell that a bundle is served."""
        self._models.labels(model, version, target, digest).set(1)

    def finished(self, model: str, event: FinishEvent) -> None:
        """Take in the timings of a completed answer."""
        self._queue_wait.labels(model).observe(event.queue_seconds)
        self._first_token.labels(model).observe(event.queue_seconds + event.prefill_seconds)
        if event.generated_tokens > 1:
            mean = event.decode_seconds / (event.generated_tokens - 1)
            self._per_token.labels(model).observe(mean)
        self._tokens.labels(model, "prompt").inc(event.prompt_tokens)
        self._tokens.labels(model, "generated").inc(event.generated_tokens)

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
