"""`mlotel monitor`: runs the pipeline on live input, around the clock.

The main thread takes signals and shows the state. The pipeline runs on another thread, so that a signal ends the run
even while a stage hangs.
"""

import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mlotel_cli.config import check as config
from mlotel_cli.config.policies import Retention
from mlotel_cli.config.schema import Job
from mlotel_cli.errors import Interrupted, UsageError
from mlotel_cli.link.persistent import PersistentLink
from mlotel_cli.modes.batch_steps import seed_everything
from mlotel_cli.modes.build import apply_option, build_pipeline
from mlotel_cli.modes.monitor_loop import Ending, Feed, Loop
from mlotel_cli.modes.monitor_status import Board, Ticker
from mlotel_cli.modes.monitor_view import View, create_view
from mlotel_cli.modes.opening import open_run, recorder_imports
from mlotel_cli.modes.run import Session, reporting
from mlotel_cli.screen import stderr
from mlotel_cli.sources import Batches, Intake
from mlotel_cli.wire import HttpOptions, MonitorOptions

if TYPE_CHECKING:
    from omegaconf import DictConfig

_REFRESH_S = 0.2


def run(cfg: "DictConfig", job: Job) -> Mapping[str, Any]:
    """Run the pipeline on live input as `cfg` says, until a signal, `monitor.max_batches` or the source's end.

    Returns:
        run.json's content.

    Raises:
        UsageError: when the configuration cannot be built; nothing was recorded then.
        StageError: when a batch failed and `monitor.on_error=fail`.
        DataError: when the source failed for good.
        RecorderError: when the recorder cannot be started, or not be closed in the end.
        Interrupted: after a signal before the pipeline was ready.
    """
    board, ending = Board(name=cfg.run.name), Ending()
    view = create_view(stderr(), board)

    def on_signal(signum: int) -> None:
        if not ending.is_awaited:
            raise Interrupted(signum)
        ending.ask(signal.Signals(signum).name)

    with ExitStack() as stack:
        listener = stack.enter_context(config.listen(str(cfg.monitor.http.host), int(cfg.monitor.http.port)))
        imports = recorder_imports(cfg.tracker.mode)
        link = PersistentLink(job.output_dir, imports=imports, say=view.say, on_snapshot=board.hear, listener=listener)
        session = Session(job.output_dir, say=view.say, link=link, on_signal=on_signal)
        with reporting(session):
            seed_everything(cfg.seed)
            intake = create_intake(cfg)
            stack.callback(intake.close)
            options = monitor_options(cfg, listener)
            loop = _prepare(cfg, job, session=session, intake=intake, ending=ending, options=options)
            supervise(loop, link, view, ending=ending, board=board, grace_s=float(cfg.monitor.grace_s))
            session.tell({"ended": ending.reason, "source": asdict(intake.report()), "notes": list(_notes(intake))})
            view.say(f"ended: {ending.reason}; finishing files and sinks")
    return session.info or {}


def create_intake(cfg: "DictConfig") -> Intake:
    """Build the source that the configuration describes, and the queue behind it.

    Raises:
        UsageError: when it cannot be built.
    """
    policy, node = config.split_source(cfg.source)
    return Intake(config.instantiate(node, "source"), policy)


def _notes(intake: Intake) -> Iterator[str]:
    """Say why a run that ended well had no input."""
    report = intake.report()
    if not report.received:
        lost = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
        yield f"nothing came from the source: {intake.health.detail or lost or 'it was silent'}"


def _prepare(
    cfg: "DictConfig", job: Job, *, session: Session, intake: Intake, ending: Ending, options: MonitorOptions
) -> Loop:
    """Build the pipeline and open the run. An option takes its example inputs from the source's first batch."""
    built = build_pipeline(cfg)
    feed = Feed(intake)
    with built.inference():
        changes = apply_option(cfg, built, Batches(_First(feed), key="source"))
    open_run(session, cfg, job, mode="monitor", backend=str(cfg.telemetry.backend), monitor=options)
    session.tell({"optimize": changes})
    return Loop(cfg, session, feed, built, ending)


class _First:
    """A data set that holds the source's first batch: an option takes its example inputs from it."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __iter__(self) -> Any:
        return self._feed.look(1)


def monitor_options(cfg: "DictConfig", listener: socket.socket) -> MonitorOptions:
    """Return what the recorder does beyond that of an evaluation; it serves HTTP on `listener`.

    Raises:
        UsageError: when spans are not recorded at all.
    """
    if str(cfg.telemetry.backend) != "otel":
        raise UsageError(
            f"telemetry.backend={cfg.telemetry.backend}: a monitor lives on its spans; use telemetry.backend=otel"
        )
    monitor = cfg.monitor
    return MonitorOptions(
        http=HttpOptions(host=str(monitor.http.host), port=int(monitor.http.port), fd=listener.fileno()),
        window_s=float(monitor.window_s),
        slow_ms=cfg.telemetry.slow_ms,
        background_rate=float(cfg.telemetry.background_rate),
        retention=Retention(**{str(name): float(value) for name, value in monitor.retention.items()}),
    )


def supervise(loop: Loop, link: PersistentLink, view: View, *, ending: Ending, board: Board, grace_s: float) -> None:
    """Run `loop` on another thread until it ends or `ending` has a reason; batches under way then get `grace_s`.

    Raises:
        BaseException: what ended the loop, if it failed.
    """
    worker = threading.Thread(target=loop.run, name="mlotel-monitor", daemon=True)
    ending.is_awaited = True
    ticker = Ticker(loop, link, board, say=view.say)
    with view:
        board.look_at(loop, link)
        ticker.start()
        worker.start()
        while not ending.reason:
            view.refresh()
            time.sleep(_REFRESH_S)
        board.ending = ending.reason
        loop.feed.intake.stop()
        deadline_s = time.monotonic() + grace_s
        while worker.is_alive() and (left_s := deadline_s - time.monotonic()) > 0:
            worker.join(min(left_s, _REFRESH_S))
            view.refresh()
        ticker.stop()
    if worker.is_alive():
        view.say(f"monitor.grace_s={grace_s:g} is over; what was under way is left unfinished")
    if loop.error is not None:
        raise loop.error
