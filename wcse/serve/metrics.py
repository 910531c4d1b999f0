"""What ``/metrics`` shows, under vLLM's names with the prefix ``wcse:``. Knows counters, no requests."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from wcse.engine.engine import Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model

        def make(kind: type, name: str, about: str, labels: tuple[str, ...] = ()) -> Any:
            metric = kind(f"wcse:{name}", about, ("model_name", *labels), registry=self.registry)
            return metric if labels else metric.labels(model)

        self._running = make(Gauge, "num_requests_running", "requests in the engine")
        self._rows = make(Gauge, "num_sequences_running", "completions that are written now")
        self._usage = make(Gauge, "kv_cache_usage_perc", "share of the KV pages in use, 0 to 1")
        self._pinned = make(Gauge, "kv_pages_pinned", "pages that running work stands on")
        self._hits = make(Counter, "prefix_cache_hits", "prompt and prefix tokens found in the KV tree")
        self._queries = make(Counter, "prefix_cache_queries", "tokens read or found in the KV tree")
        self._prompt = make(Counter, "prompt_tokens", "tokens of prompts")
        self._generated = make(Counter, "generation_tokens", "tokens written, pruned ones included")
        self._ended = make(Counter, "request_success", "choices by finish reason", ("finished_reason",))
        self._refused = make(Counter, "requests_refused", "requests by HTTP status", ("status",))
        self._nodes = make(Counter, "search_nodes", "nodes written by searches")
        self._prm = make(Counter, "prm_tokens", "tokens read by the verifier")
        self._prm_reused = make(Counter, "prm_tokens_reused", "tokens the verifier did not read again")
        self._first = Histogram(
            "wcse:time_to_first_token_seconds",
            "seconds from a request to its first text (streams)",
            ("model_name",),
            registry=self.registry,
            buckets=_SECONDS,
        ).labels(model)

    def finished(self, prompt_tokens: int, completion_tokens: int, reasons: list[str]) -> None:
        """A request has ended by itself."""
        self._prompt.inc(prompt_tokens)
        self._generated.inc(completion_tokens)
        for reason in reasons:
            self._ended.labels(self._model, reason).inc()

    def searched(self, nodes: int, prm_tokens: int, prm_reused: int) -> None:
        self._nodes.inc(nodes)
        self._prm.inc(prm_tokens)
        self._prm_reused.inc(prm_reused)

    def refused(self, status: int) -> None:
        self._refused.labels(self._model, str(status)).inc()

    def first_text(self, seconds: float) -> None:
        self._first.observe(seconds)

    def page(self, engine: Engine, running: int) -> bytes:
        """The text of ``/metrics``."""
        stats = engine.runner.tree.stats()
        self._running.set(running)
        self._rows.set(len(engine.rows))
        self._usage.set(1 - stats["free"] / stats["total"])
        self._pinned.set(stats["pinned"] + stats["in_flight"])
        self._set(self._hits, engine.reused)
        self._set(self._queries, engine.reused + engine.runner.computed)
        return bytes(generate_latest(self.registry))

    def _set(self, counter: Counter, value: int) -> None:
        counter.inc(max(0.0, value - counter._value.get()))
