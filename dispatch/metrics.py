"""What this node counts, for Prometheus.

One job: name the metrics and keep their children. Each node has its own registry; every sample
carries the node's id, because a scrape reaches one worker of several.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one node."""

    def __init__(self, node_id: UUID) -> None:
        self._registry = CollectorRegistry()
        self._children: dict[tuple[Counter | Histogram, str], Any] = {}
        self._node = str(node_id)
        self._accepts = Counter(
            "dispatch_accepts_total",
            "Verdicts on accepts",
            ["node", "verdict"],
            registry=self._registry,
        )
        self._webhooks = Counter(
            "dispatch_webhooks_total",
            "Webhooks by what became of them",
            ["node", "outcome"],
            registry=self._registry,
        )
        self._changes = Counter(
            "dispatch_booking_changes_total",
            "Committed changes of bookings by the status afterwards",
            ["node", "status"],
            registry=self._registry,
        )
        self._accept_seconds = Histogram(
            "dispatch_accept_seconds",
            "From reading an accept to its verdict",
            ["node"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
            registry=self._registry,
        ).labels(self._node)

        self._steps = Histogram(
            "dispatch_waterfall_seconds",
            "From one step of a booking to the next: committed after it was heard of, written (the "
            "first card) after the opening, seen and accepted after that, joined after the accept",
            ["node", "step"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0),
            registry=self._registry,
        )

    def step(self, step: str, seconds: float) -> None:
        """A booking came one step further."""
        self._child(self._steps, step).observe(seconds)

    def accept(self, verdict: str, seconds: float) -> None:
        """A mechanic's accept was answered: `won`, or the reason of the loss."""
        self._child(self._accepts, verdict).inc()
        self._accept_seconds.observe(seconds)

    def webhook(self, outcome: str) -> None:
        """A webhook was handled."""
        self._child(self._webhooks, outcome).inc()

    def change(self, status: str) -> None:
        """A change of a booking was committed here."""
        self._child(self._changes, status).inc()

    def _child(self, metric: Counter | Histogram, label: str) -> Any:
        """Looked up once: finding a child by its labels costs more than counting with it."""
        child = self._children.get((metric, label))
        if child is None:
            child = self._children[metric, label] = metric.labels(self._node, label)
        return child

    def watch(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody asks."""
        gauge = Gauge(f"dispatch_{name}", description, ["node"], registry=self._registry)
        gauge.labels(self._node).set_function(read)

    def render(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)
