"""A run from its start to its end, for every mode: the recorder, the backend of spans, signals.

However a run ends, its session tells the recorder how, and waits for it to finish files and sinks.
"""

import os
import signal
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol, Self

from mlotel_cli.config.credentials import hide
from mlotel_cli.errors import Interrupted
from mlotel_cli.link.handoff import RecorderLink
from mlotel_cli.link.persistent import PersistentLink
from mlotel_cli.modes.results import print_results
from mlotel_cli.store.run_json import mark_failed
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.device import DeviceTimer
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.tracer import Backend, Recording
from mlotel_cli.wire import Attachment, Closing, Info, Opening, Settled

_CALIBRATION_SPANS = 500
_SHOW_CURSOR = b"\x1b[?25h"
_ONE_SIGNAL_S = 0.3
"""Signals so close together count as one: `timeout` and many wrappers signal the process and its group at once."""
_CLOSING_GRACE_S = 60.0
"""Added to the tracker's own time limit: for merging Parquet and computing intervals."""


class Settling(Protocol):
    """What a loop over batches needs of its run: `Session`, or under a profiler `profile.profiled.ResultFile`."""

    closing: Closing

    def wait_for_room(self) -> None:
        """Wait while the recorder is far behind; call it between batches."""
        ...

    def record(self) -> None:
        """Begin to record spans: the warm-up is over."""
        ...

    def tell(self, info: Mapping[str, Any]) -> None:
        """Add to run.json."""
        ...

    def settle(self, settled: Settled) -> None:
        """A batch is done."""
        ...


class Session:
    """Opens a run and closes it. Create it before user code is imported: that code must find the provider.

    Attributes:
        closing: how the run ended; the mode fills it in.
        info: run.json's content, once closed.
        link: to the recorder.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        say: Callable[[str], None],
        imports: tuple[str, ...] = ("polars",),
        link: RecorderLink | PersistentLink | None = None,
        on_signal: Callable[[int], None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the recorder process and install the provider; nothing is written before `open`.

        Args:
            run_dir: an existing folder.
            say: takes the recorder's messages to the user.
            imports: what the recorder imports at once.
            link: a recorder that was started already.
            on_signal: called with the first SIGINT or SIGTERM, for a run that normally ends by one; without it, the
                signal raises Interrupted.
            now: seconds, monotonic.
        """
        self.run_dir = run_dir
        self.closing = Closing()
        self.info: Mapping[str, Any] | None = None
        self._faults = Faults()
        self._recording: Recording | None = None
        self._backend: Backend | None = None
        self._opened = False
        self._finish_s = 0.0
        self._previous: dict[int, Any] = {}
        self._is_exiting = False
        self._came_late: int | None = None
        self._on_signal = on_signal
        self._now = now
        self._signalled_s: float | None = None
        self.link: RecorderLink | PersistentLink = link or RecorderLink(run_dir, imports=imports, say=say)
        api.install()

    def __enter__(self) -> Self:
        """Take over the signals: SIGTERM and SIGHUP end the run like a Ctrl-C, with everything measured so far."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
                continue  # nohup asked for this
            try:
                self._previous[signum] = signal.signal(signum, self._interrupt)
            except ValueError:  # not the main thread: the program owns the signals
                break
        return self

    def open(
        self,
        opening: Opening,
        *,
        backend: str,
        strict: bool,
        flush_ms: int,
        device: DeviceTimer | None = None,
    ) -> None:
        """Begin the run; spans stay off until `record`.

        Args:
            opening: what the recorder must know.
            backend: otel | nvtx | off.
            strict: raise telemetry faults.
            flush_ms: how often stamps are handed over.
            device: measures the device; None on a CPU.
        """
        self._faults = Faults(strict=strict)
        self._finish_s = opening.tracker.finish_timeout_s
        if backend == "otel":
            self._recording = Recording(
                self.link.emit,
                faults=self._faults,
                device=device,
                resource_attributes=opening.identity,
            )
            self._backend = self._recording
        elif backend == "nvtx":
            from mlotel_cli.telemetry.backends.nvtx import Nvtx

            self._backend = Nvtx(faults=self._faults, max_names=opening.max_names)
        self.link.open(opening, flush_ms=flush_ms)
        self._opened = True

    def record(self) -> None:
        """Turn on the run's backend: from now on spans are recorded, or become ranges."""
        if self._recording is not None:
            self.closing.span_cost_us = measure_span_cost(self._recording)
        if self._backend is not None:
            api.use(self._backend)

    def tell(self, info: Mapping[str, Any]) -> None:
        """Add to run.json; its `config` goes to the tracker's config."""
        self.link.send(Info.of(info))

    def attach(self, attachment: Attachment) -> None:
        """Give the tracker a table and files to keep with the run."""
        self.link.send(attachment)

    def settle(self, settled: Settled) -> None:
        """Say that the mode is done with a batch."""
        self.link.send(settled)

    def wait_for_room(self) -> None:
        """Wait while the recorder is far behind."""
        self.link.wait_for_room()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop recording, tell the recorder how the run ended, and wait for it to finish every sink.

        Raises:
            Interrupted: when a signal came meanwhile, after everything is finished.
        """
        self._is_exiting = True
        api.use(OFF)
        try:
            if not self._opened:
                self.link.abandon()
            else:
                self._close(error)
        finally:
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)
        if self._came_late is not None and error is None and self._on_signal is None:
            raise Interrupted(self._came_late)

    def _close(self, error: BaseException | None) -> None:
        closing = self.closing
        if isinstance(error, KeyboardInterrupt):
            closing.status = "interrupted"
        elif error is not None:
            closing.status, closing.error = "failed", hide(str(error)) or type(error).__name__
        device = self._recording.device if self._recording is not None else None
        telemetry = closing.telemetry
        if device is not None:
            telemetry.device_abandoned, telemetry.device_captured = device.abandoned, device.captured
            telemetry.device_elsewhere = device.elsewhere
        telemetry.source_paused_s, telemetry.faults = self.link.paused_s, self._faults.counts()
        try:
            self.info = self.link.close(closing, timeout_s=self._finish_s + _CLOSING_GRACE_S)
        except Exception:
            mark_failed(self.run_dir, closing.error or "the recorder process ended")
            if error is None:
                raise

    def _interrupt(self, signum: int, _frame: FrameType | None) -> None:
        """End the run in order at the first signal; leave at once at the second, and the recorder finishes alone."""
        now_s = self._now()
        if self._signalled_s is not None:
            if now_s - self._signalled_s >= _ONE_SIGNAL_S:
                _leave(signum)
            return
        self._signalled_s = now_s
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes sends several
        if self._is_exiting:
            self._came_late = signum
            os.write(2, b"Finishing files and W&B; once more leaves that to the background.\n")
            return
        if self._on_signal is None:
            raise Interrupted(signum)
        self._on_signal(signum)


@contextmanager
def reporting(session: Session) -> Generator[None]:
    """Enter `session`, and print the closing table when it has ended, however it did."""
    try:
        with session:
            yield
    finally:
        if session.info is not None:
            print_results(session.info, session.run_dir)


def _leave(signum: int) -> NoReturn:
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)  # the progress bar hid it
    os._exit(128 + signum)


def measure_span_cost(recording: Recording) -> float:
    """Measure what a bare span costs now, in microseconds: the mean of 500 that are thrown away."""
    discarding = Recording(lambda _: None, faults=recording.faults)
    api.use(discarding)
    tracer = api.PROVIDER.get_tracer(api.SCOPE)
    discarding.processors = ()
    with tracer.start_as_current_span("root"):
        start = time.perf_counter_ns()
        for _ in range(_CALIBRATION_SPANS):
            with tracer.start_as_current_span("span"):
                pass
        cost = time.perf_counter_ns() - start
    api.use(OFF)
    return cost / _CALIBRATION_SPANS / 1e3
