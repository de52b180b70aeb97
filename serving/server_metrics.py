"""Figures of a server in Prometheus' format: requests, tokens, who waits, how long first tokens take."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

NAME = "lensmith"
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServerMetrics:
    """Counted by the server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by path and status.", "path", "status")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", "model")
        self.cached_tokens = self._counter("cached_tokens", "Tokens of prompts that states already held.", "model")
        self.new_tokens = self._counter("new_tokens", "Tokens of answers.", "model")
        self.first_token = Histogram("first_token_seconds", "From a place to the first token.", ["model"],
                                     namespace=NAME, registry=self.registry, buckets=FIRST_TOKEN_SECONDS)  # fmt: skip

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, namespace=NAME, registry=self.registry)

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A figure that is looked up when it is asked for."""
        Gauge(name, help_text, namespace=NAME, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self.registry)
