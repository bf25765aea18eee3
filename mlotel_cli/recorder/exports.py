"""Every sink but Parquet and W&B, composed: span metrics, OTLP, live figures, HTTP, as far as a mode has them.

The main loop calls everything here, but for the routes, which HTTP's threads call.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mlotel_cli.recorder import prometheus
from mlotel_cli.recorder.http import HttpServer, Reply, Routes
from mlotel_cli.recorder.live import LiveState, Published
from mlotel_cli.recorder.machine import GpuWatch, gpu_families, process_families
from mlotel_cli.recorder.measurements import Family, Measurements, Point
from mlotel_cli.recorder.otlp import Export, create_otlp
from mlotel_cli.recorder.page import Status, render_page
from mlotel_cli.recorder.sampling import TailSampler
from mlotel_cli.recorder.spanmetrics import SpanMetrics
from mlotel_cli.recorder.workload import Workload
from mlotel_cli.records import BatchRecord, SpanRecord

STALE_S = 10.0
"""Without a batch, a word of the workload or a turn of the main loop for so long, something is wrong."""

SpanTaker = Callable[[SpanRecord], None]
Health = Mapping[str, Mapping[str, Any]]
"""By sink: ok, sent, lost, detail."""


class Exports(Protocol):
    """What the main loop feeds; closed by `end`, `deliver`, `close`, in this order."""

    @property
    def span_takers(self) -> Sequence[SpanTaker]:
        """Called with each span; none at all where nobody wants them."""
        ...

    def add_batch(self, record: BatchRecord) -> None:
        """A row is finished."""
        ...

    def take_live(self, text: str) -> None:
        """The workload reported."""
        ...

    def tick(self) -> None:
        """Called after every frame, and a few times a second without one."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What run.json says of these sinks."""
        ...

    def end(self) -> None:
        """The run is over; what is measured stays to be read until `close`."""
        ...

    def deliver(self, timeout_s: float) -> Mapping[str, Any]:
        """Send what waits, within `timeout_s`; returns what the summary says of it under `telemetry`."""
        ...

    def close(self) -> None:
        """Finish; bounded in time."""
        ...


class NoExports:
    """A run with Parquet and W&B only."""

    span_takers: Sequence[SpanTaker] = ()

    def add_batch(self, record: BatchRecord) -> None:
        """Nobody wants it."""

    def take_live(self, text: str) -> None:
        """Nobody wants it."""

    def tick(self) -> None:
        """Nothing is due."""

    def describe(self) -> Mapping[str, Any]:
        """Nothing to say."""
        return {}

    def end(self) -> None:
        """Nothing to do."""

    def deliver(self, timeout_s: float) -> Mapping[str, Any]:
        """Nothing to send."""
        return {"otlp": None}

    def close(self) -> None:
        """Nothing to finish."""


class OtlpExports(NoExports):
    """An evaluation's with OTLP: every span as it arrives, and metrics where those are wanted."""

    def __init__(self, opening: Mapping[str, Any], *, say: Callable[[str], None]) -> None:
        """Start sending, if the settings or the environment name somebody to send to."""
        self._metrics = SpanMetrics(opening["identity"], max_names=opening["max_names"])
        self._arrived: list[SpanRecord] = []
        self._otlp = _create_otlp(opening, measurements=self, say=say)
        described = self._otlp.describe()
        self._counts = described is not None and described["metrics"] is not None
        takers = [self._arrived.append] if _wants_spans(self._otlp) else []
        self.span_takers = (*takers, self._metrics.add_span) if self._counts else tuple(takers)

    def families(self) -> Sequence[Family]:
        """Everything measured so far; safe from any thread."""
        return [*self._metrics.families(), *process_families({})]

    def add_batch(self, record: BatchRecord) -> None:
        """Count a row."""
        if self._counts:
            self._metrics.add_batch(record)

    def tick(self) -> None:
        """Hand over what arrived."""
        if self._arrived:
            self._otlp.add(self._arrived)
            self._arrived.clear()

    def deliver(self, timeout_s: float) -> Mapping[str, Any]:
        """Send the rest."""
        self.tick()
        self._otlp.close(timeout_s)
        return {"otlp": self._otlp.describe()}


class LiveExports:
    """A monitor's: span metrics over HTTP and OTLP, live figures for the workload and the status page."""

    def __init__(
        self,
        opening: Mapping[str, Any],
        *,
        run_dir: Path,
        answer: Callable[[Mapping[str, Any]], None],
        say: Callable[[str], None],
        sinks: Callable[[], Health],
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
            clock: seconds, monotonic.
            gpus: asked for the GPUs; by default NVML, where there is one.
        """
        live: Mapping[str, Any] = opening["live"]
        self._name, self._run_dir = str(opening["name"]), str(run_dir)
        self._answer, self._sinks, self._clock = answer, sinks, clock
        self._identity: Mapping[str, Any] = opening["identity"]
        self._service = {"service.name": str(self._identity.get("service.name") or "unknown_service")}
        self._metrics = SpanMetrics(self._identity, max_names=opening["max_names"])
        self._live = LiveState(now=clock())
        self._sampler = TailSampler(slow_ms=live["slow_ms"], background_rate=live["background_rate"], clock=clock)
        self._gpus = gpus or GpuWatch()
        self._workload = Workload()
        self._is_ending = False
        self._published = Published(clock(), {"sinks": {}})
        self._otlp = _create_otlp(opening, measurements=self, say=say)
        self._http = HttpServer(self._routes(), **live["http"])
        if self._http.error:
            say(f"No /metrics and no status page: {self._http.error}. The run goes on without; set monitor.http.port.")
        self._publish()
        takers = (self._metrics.add_span, self._sampler.add)
        self.span_takers: Sequence[SpanTaker] = takers if _wants_spans(self._otlp) else takers[:1]

    def add_batch(self, record: BatchRecord) -> None:
        """Count a row."""
        self._metrics.add_batch(record)
        self._live.add(record, now=self._clock())
        if kept := self._sampler.decide(record):
            self._otlp.add(kept)

    def take_live(self, text: str) -> None:
        """Read what the workload reports.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: when it makes no sense.
        """
        told = Workload.from_json(text, now=self._clock())
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
        """Where it is served."""
        return {"http": self._http.url}

    def end(self) -> None:
        """From now on not ready; figures are served until `close`."""
        self._is_ending = True

    def deliver(self, timeout_s: float) -> Mapping[str, Any]:
        """Send the rest to the collector."""
        self.tick()
        self._otlp.close(timeout_s)
        return {"otlp": self._otlp.describe()}

    def close(self) -> None:
        """Stop serving."""
        self._gpus.close()
        self._http.close()

    def families(self) -> Sequence[Family]:
        """Everything measured so far; safe from any thread."""
        workload, sinks = self._workload, self._published.snapshot["sinks"]
        return [
            *self._metrics.families(),
            *workload.families(self._service),
            *_sink_families(sinks, self._service),
            *process_families(workload.process),
            *gpu_families(self._gpus.readings),
        ]

    def _publish(self) -> None:
        sinks = {**self._sinks(), **self._describe_otlp(), "http": self._describe_http()}
        self._published = self._live.publish(
            now=self._clock(),
            workload=self._workload,
            sinks=sinks,
            http=self._http.url,
            ready=not self._not_ready(),
        )

    def _describe_http(self) -> dict[str, Any]:
        http = self._http
        detail = http.url or http.error
        return {"ok": http.url is not None, "sent": http.num_requests, "lost": http.num_refused, "detail": detail}

    def _describe_otlp(self) -> dict[str, dict[str, Any]]:
        described = self._otlp.describe()
        if described is None:
            return {}
        sinks = {"otlp": described, "otlp_metrics": described["metrics"]}
        return {
            name: {"ok": not sink["detail"], **{key: sink[key] for key in ("sent", "lost", "detail")}}
            for name, sink in sinks.items()
            if sink and sink["endpoint"]
        }

    # -- routes: on HTTP's threads --------------------------------------------------------------------------------

    def _routes(self) -> Routes:
        return {"/": self._show, "/metrics": self._scrape, "/healthz": self._health, "/readyz": self._ready}

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

    def _health(self) -> Reply:
        return _verdict(self._stuck())

    def _ready(self) -> Reply:
        return _verdict(self._stuck() or self._not_ready())

    def _stuck(self) -> str:
        silent_s = self._clock() - self._published.at_s
        return f"the recorder does nothing since {silent_s:.0f} s" if silent_s > STALE_S and not self._is_ending else ""

    def _not_ready(self) -> str:
        """Why no batch can be expected; empty when there is no reason."""
        now, workload, batch_s = self._clock(), self._workload, self._live.batch_s
        if self._is_ending:
            return "the run is ending"
        if workload.heard_s is None:
            return "the workload has not reported yet"
        if now - workload.heard_s > STALE_S:
            return f"nothing heard of the workload for {now - workload.heard_s:.0f} s"
        if workload.source["state"] != "connected":
            return f"the source is {workload.source['state'] or 'unknown'}"
        if batch_s is None:
            return "no batch yet"
        return f"no batch for {now - batch_s:.0f} s" if now - batch_s > STALE_S else ""


def _verdict(problem: str) -> Reply:
    return Reply(f"{problem or 'ok'}\n".encode(), status=503 if problem else 200)


def _sink_families(sinks: Health, service: Mapping[str, str]) -> Sequence[Family]:
    def points(key: str) -> list[Point]:
        return [Point(float(sink[key]), {**service, "sink": name}) for name, sink in sinks.items()]

    return [
        Family("mlotel.sink.sent", "counter", "", "Rows, spans or answers that a sink took.", points("sent")),
        Family("mlotel.sink.lost", "counter", "", "Rows, spans or answers that a sink dropped.", points("lost")),
        Family("mlotel.sink.healthy", "gauge", "", "1 while a sink works, else 0.", points("ok")),
    ]


def _wants_spans(otlp: Export) -> bool:
    described = otlp.describe()
    return described is not None and described["endpoint"] is not None


def _create_otlp(opening: Mapping[str, Any], *, measurements: Measurements, say: Callable[[str], None]) -> Export:
    return create_otlp(
        opening.get("otlp") or {},
        environ=os.environ,
        resource=opening["identity"],
        measurements=measurements,
        say=say,
        started_ns=opening["started_ns"],
    )


def create_exports(
    opening: Mapping[str, Any],
    *,
    run_dir: Path,
    answer: Callable[[Mapping[str, Any]], None],
    say: Callable[[str], None],
    sinks: Callable[[], Health],
) -> Exports:
    """What the run's mode has: a monitor's when the opening has `live`."""
    if not opening.get("live"):
        return OtlpExports(opening, say=say)
    return LiveExports(opening, run_dir=run_dir, answer=answer, say=say, sinks=sinks)
