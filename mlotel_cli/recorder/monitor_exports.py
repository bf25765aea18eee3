"""A monitor's exports: metrics, traces worth sending, live figures, health and the status page.

The main loop calls everything here but the routes. HTTP's threads call those, and they read what was published.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlotel_cli.recorder.exports import Exports
from mlotel_cli.recorder.live import prometheus
from mlotel_cli.recorder.live.http_server import HttpServer, Reply, Routes
from mlotel_cli.recorder.live.live_state import LiveState
from mlotel_cli.recorder.live.page import Status, render_page
from mlotel_cli.recorder.machine import GpuWatch, gpu_families, process_families
from mlotel_cli.recorder.measurements import Family, Point
from mlotel_cli.recorder.otlp.otlp_sink import create_otlp
from mlotel_cli.recorder.sampling import TailSampler
from mlotel_cli.recorder.spanmetrics import SpanMetrics
from mlotel_cli.recorder.workload import Workload
from mlotel_cli.records import BatchRecord
from mlotel_cli.snapshot import SinkHealth, Snapshot
from mlotel_cli.store.run_json import Before
from mlotel_cli.summary import OtlpCounts
from mlotel_cli.wire import MonitorOptions, Opening, Report

STALE_S = 10.0
"""The longest time without a batch, a report of the workload or a turn of the main loop."""
USUAL_GAPS = 3
"""A batch is missing only after as many of the usual gaps between two."""
_STATUSES = ("done", "failed", "skipped", "incomplete")
FRESH_S = 0.2
"""How long an answer is repeated, so that many requests cost the main loop little."""

Health = Mapping[str, SinkHealth]
"""By the name of the sink."""


class MonitorExports(Exports):
    """Span metrics over HTTP and OTLP, traces worth sending, live figures for the workload and the status page."""

    def __init__(
        self,
        opening: Opening,
        *,
        run_dir: Path,
        answer: Callable[[Snapshot], None],
        say: Callable[[str], None],
        sinks: Callable[[], Health],
        before: Before | None = None,
        clock: Callable[[], float] = time.monotonic,
        gpus: GpuWatch | None = None,
    ) -> None:
        """Start serving.

        Args:
            opening: the run's first message.
            run_dir: shown on the status page.
            answer: takes the snapshot for the workload, once a second.
            say: takes one line for the user.
            sinks: health of the sinks that are not here.
            before: what the recorders before this one leave to it.
            clock: seconds, monotonic.
            gpus: asked for the GPUs; by default NVML, where there is one.
        """
        monitor = opening.monitor or MonitorOptions()
        self._name, self._run_dir = opening.name, str(run_dir)
        self._answer, self._sinks, self._clock = answer, sinks, clock
        self._identity = opening.identity
        self._metrics = SpanMetrics(self._identity, max_names=opening.max_names, statuses=_STATUSES)
        self._service = self._metrics.service
        self._before = before = before or Before()
        self._live = LiveState(now=clock(), earlier=before.totals, earlier_s=before.seconds)
        self._sampler = TailSampler(slow_ms=monitor.slow_ms, background_rate=monitor.background_rate, clock=clock)
        self._gpus = gpus or GpuWatch()
        self._workload = Workload()
        self._is_ending = False
        self._own_sinks: Health = {}
        self._published = self._live.publish(now=clock(), workload=self._workload, sinks={}, http=None, ready=False)
        self._otlp = create_otlp(opening, measurements=self.families, say=say)
        http = monitor.http
        self._http = HttpServer(self._routes(), host=http.host, port=http.port or before.port, fd=http.fd)
        if self._http.error:
            say(f"No /metrics and no status page: {self._http.error}. The run goes on without; set monitor.http.port.")
        self._publish()
        takers = (self._metrics.add_span, self._sampler.add)
        self.span_takers = takers if self._otlp.sends_spans else takers[:1]

    def add_batch(self, record: BatchRecord) -> None:
        """Count a row."""
        self._metrics.add_batch(record)
        self._live.add(record, now=self._clock())
        if kept := self._sampler.decide(record):
            self._otlp.add(kept)

    def take_report(self, report: Report) -> None:
        """Take what the workload reports once a second."""
        told = Workload.of(report, now=self._clock())
        self._live.drop(max(0, told.dropped - self._workload.dropped))
        self._workload = told

    def tick(self) -> None:
        """Send what needs no row; once a second publish, and tell the workload."""
        if kept := self._sampler.ready():
            self._otlp.add(kept)
        if self._live.advance(now=self._clock()):
            self._live.slow_ms = self._sampler.threshold_ms
            self._publish()
            self._answer(self._published.snapshot)

    def describe(self) -> Mapping[str, Any]:
        """Return the address, and what every sink of the run has taken so far."""
        sinks = {
            name: {key: count for key in ("sent", "lost", "queued") if (count := getattr(sink, key)) is not None}
            for name, sink in self._all_sinks().items()
        }
        return {"http": self._http.url, "sinks": sinks}

    def end(self) -> None:
        """Stop being ready; figures are served until `close`."""
        self._is_ending = True

    def deliver(self, timeout_s: float) -> OtlpCounts | None:
        """Send the rest to the collector."""
        self.tick()
        self._otlp.close(timeout_s)
        counts = self._otlp.describe()
        if counts is None:
            return None
        metrics = counts.metrics and self._before.with_sink("otlp_metrics", counts.metrics)
        return replace(self._before.with_sink("otlp", counts), metrics=metrics)

    def close(self) -> None:
        """Stop serving."""
        self._gpus.close()
        self._http.close()

    def families(self) -> Sequence[Family]:
        """Return everything measured so far; safe from any thread."""
        workload = self._workload
        return [
            *self._metrics.families(),
            *workload.families(self._service),
            *_sink_families(self._own_sinks, self._service),
            *(_trace_families(self._sampler, self._service) if self._otlp.sends_spans else ()),
            *process_families(workload.process),
            *gpu_families(self._gpus.readings),
        ]

    def _publish(self) -> None:
        self._published = self._live.publish(
            now=self._clock(),
            workload=self._workload,
            sinks=self._all_sinks(),
            http=self._http.url,
            ready=not self._not_ready(),
        )

    def _all_sinks(self) -> Health:
        """Return the health of all sinks, with what they took since the start of the run."""
        self._own_sinks = {**self._sinks(), **self._otlp_health(), "http": self._http.health()}
        return {name: self._before.with_sink(name, sink) for name, sink in self._own_sinks.items()}

    def _otlp_health(self) -> Health:
        counts = self._otlp.describe()
        sinks = {"otlp": counts, "otlp_metrics": counts and counts.metrics}
        return {
            name: SinkHealth(not sink.detail, sink.sent, sink.lost, sink.queued, sink.detail)
            for name, sink in sinks.items()
            if sink is not None and sink.endpoint
        }

    # -- routes: on HTTP's threads --------------------------------------------------------------------------------

    def _routes(self) -> Routes:
        return {
            "/": Remembered(self._show, clock=self._clock),
            "/metrics": Remembered(self._scrape, clock=self._clock),
            "/healthz": lambda: _verdict(self._stuck()),
            "/readyz": lambda: _verdict(self._stuck() or self._not_ready()),
        }

    def _show(self) -> Reply:
        return render_page(
            Status(
                name=self._name,
                run_dir=self._run_dir,
                identity=self._identity,
                published=self._published,
                problem=self._stuck() or self._not_ready(),
                now_ns=time.time_ns(),
            )
        )

    def _scrape(self) -> Reply:
        return Reply(prometheus.render(self.families(), self._identity), prometheus.CONTENT_TYPE)

    def _stuck(self) -> str:
        silent_s = self._clock() - self._published.at_s
        return f"the recorder does nothing since {silent_s:.0f} s" if silent_s > STALE_S and not self._is_ending else ""

    def _not_ready(self) -> str:
        """Return why no batch can be expected; empty when there is no reason."""
        now, workload, batch_s = self._clock(), self._workload, self._live.batch_s
        if self._is_ending:
            return "the run is ending"
        if workload.heard_s is None:
            return "the workload has not reported yet"
        if now - workload.heard_s > STALE_S:
            return f"nothing heard of the workload for {now - workload.heard_s:.0f} s"
        if workload.source.state != "connected":
            return f"the source is {workload.source.state or 'unknown'}"
        if batch_s is None:
            return "no batch yet"
        longest_s = max(STALE_S, USUAL_GAPS * self._live.usual_gap_s)  # a camera may send a frame a minute
        return f"no batch for {now - batch_s:.0f} s" if now - batch_s > longest_s else ""


def _verdict(problem: str) -> Reply:
    return Reply(f"{problem or 'ok'}\n".encode(), status=503 if problem else 200)


def _sink_families(sinks: Health, service: Mapping[str, str]) -> Sequence[Family]:
    def points(value: Callable[[SinkHealth], float]) -> list[Point]:
        return [Point(float(value(sink)), {**service, "sink": name}) for name, sink in sinks.items()]

    sent, lost, ok = points(lambda sink: sink.sent), points(lambda sink: sink.lost), points(lambda sink: sink.ok)
    return [
        Family("mlotel.sink.sent", "counter", "", "Rows, spans or answers that a sink took.", sent),
        Family("mlotel.sink.lost", "counter", "", "Rows, spans or answers that a sink dropped.", lost),
        Family("mlotel.sink.healthy", "gauge", "", "1 while a sink works, else 0.", ok),
    ]


def _trace_families(sampler: TailSampler, service: Mapping[str, str]) -> Sequence[Family]:
    counts = sampler.describe()
    overflowed = counts.pop("spans_overflowed")
    decided = [Point(count, {**service, "decision": name.removeprefix("kept_")}) for name, count in counts.items()]
    lost = [Point(overflowed, service)]
    return [
        Family("mlotel.traces", "counter", "{batch}", "Batches by why their trace was kept, or dropped.", decided),
        Family("mlotel.traces.overflowed", "counter", "{span}", "Spans that found no room to wait.", lost),
    ]


class Remembered:
    """A route that answers from memory for `FRESH_S`. One thread at a time computes."""

    def __init__(self, route: Callable[[], Reply], *, clock: Callable[[], float]) -> None:
        self._route, self._clock = route, clock
        self._lock = threading.Lock()
        self._reply: Reply | None = None
        self._made_s = 0.0

    def __call__(self) -> Reply:
        """Return the answer."""
        with self._lock:
            if self._reply is None or self._clock() - self._made_s >= FRESH_S:
                self._reply, self._made_s = self._route(), self._clock()
            return self._reply
