"""`mlotel monitor`: the pipeline on live input, around the clock.

The main thread takes signals and shows the state; the pipeline runs on a thread of its own, so that even a stage that
hangs cannot keep a signal from ending the run. Whoever judges live values, or captures them, hooks into `Loop.settle`.
"""

import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mlotel_cli import config
from mlotel_cli.errors import StageError
from mlotel_cli.execute import Finished, Inference, Numbered, SequentialExecutor
from mlotel_cli.metrics import Scorer
from mlotel_cli.modes.display import print_results, sayer
from mlotel_cli.modes.evaluate import Parts, apply_option, autocast_of, check_finished, open_run, seed_everything
from mlotel_cli.modes.monitor_status import Status, Ticker
from mlotel_cli.modes.session import Session
from mlotel_cli.pipeline import stages_of
from mlotel_cli.records import Batch
from mlotel_cli.schema import Job
from mlotel_cli.sources import Batches, Intake, Policy
from mlotel_cli.telemetry.persistent import PersistentLink

if TYPE_CHECKING:
    from omegaconf import DictConfig

_TICK_S = 0.25


@dataclass(slots=True)
class Ending:
    """Why and when the run is to end. Set from any thread, also from a signal handler."""

    reason: str = ""
    asked: threading.Event = field(default_factory=threading.Event)

    def ask(self, reason: str) -> None:
        """End the run; the first reason stays."""
        self.reason = self.reason or reason
        self.asked.set()

    def ask_by_signal(self, signum: int) -> None:
        """As a signal handler."""
        self.ask(f"signal {signum}")


def run(cfg: "DictConfig", job: Job) -> Mapping[str, Any]:
    """Run the pipeline on live input as `cfg` says, until a signal, `monitor.max_batches` or the source's end.

    Returns:
        run.json's content.

    Raises:
        UsageError: when the configuration cannot be built; nothing was recorded then.
        StageError: when a batch failed and `monitor.on_error=fail`.
        DataError: when the source failed for good.
    """
    console, ending = Console(stderr=True), Ending()
    imports = ("polars",) if cfg.tracker.mode == "disabled" else ("polars", "wandb")
    status = Status(console)
    link = PersistentLink(job.output_dir, imports=imports, say=status.say, on_live=status.hear)
    session = Session(job.output_dir, say=status.say, link=link, on_signal=ending.ask_by_signal)
    intake: Intake | None = None
    try:
        with session:
            seed_everything(cfg.seed)
            policy, node = config.split_source(cfg.source)
            pipeline = config.instantiate(cfg.pipeline, "pipeline")
            stages = stages_of(pipeline)
            intake = Intake(config.instantiate(node, "source"), _policy(policy))
            feed = Feed(intake)
            parts = Parts(stages, Batches(feed, key="source"), Scorer({}), pipeline)
            with Inference(cfg.device, autocast=autocast_of(cfg))():
                changes = apply_option(cfg, parts)
            open_run(session, cfg, job, mode="monitor", backend=str(cfg.telemetry.backend), live=_live(cfg))
            session.tell({"optimize": [asdict(change) for change in changes]})
            loop = Loop(cfg, session, feed, parts, ending)
            supervise(loop, status, ending, grace_s=float(cfg.monitor.grace_s))
    finally:
        if intake is not None:
            intake.close()
        if session.info is not None:
            sayer(console)(f"ended: {ending.reason}")
            print_results(session.info, job.output_dir)
    return session.info or {}


def supervise(loop: "Loop", status: Status, ending: Ending, *, grace_s: float) -> None:
    """Run `loop` on a thread of its own until it ends or is asked to, then give it `grace_s` for what is under way.

    Raises:
        Exception: what ended the loop, if it failed.
    """
    worker = threading.Thread(target=loop.run, name="mlotel-monitor", daemon=True)
    ticker = Ticker(loop, status)
    with status:
        ticker.start()
        worker.start()
        while not ending.asked.wait(_TICK_S):
            status.refresh()
        loop.feed.intake.stop()
        deadline_s = time.monotonic() + grace_s
        while worker.is_alive() and (left_s := deadline_s - time.monotonic()) > 0:
            worker.join(min(left_s, _TICK_S))
            status.refresh()
        ticker.stop()
    if worker.is_alive():
        status.say(f"monitor.grace_s={grace_s:g} is over: the batches under way are left unfinished.")
    if loop.error is not None:
        raise loop.error


class Feed:
    """The intake's batches in one pass, of which the first may be looked at beforehand."""

    def __init__(self, intake: Intake) -> None:
        """Nothing is read yet."""
        self.intake = intake
        self._head: list[Batch] = []
        self._rest = iter(intake)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches that were looked at, then the others; once only."""
        while self._head:
            yield self._head.pop(0)
        yield from self._rest

    def look(self, count: int) -> Iterator[Batch]:
        """Yield the next `count` batches, which come again in the pass."""
        for number in range(count):
            if number >= len(self._head):
                batch = next(self._rest, None)
                if batch is None:
                    return
                self._head.append(batch)
            yield self._head[number]

    def forget(self, reason: str) -> None:
        """Live input that was looked at, and what came meanwhile, is of the past; counted under `reason`."""
        self.intake.count_dropped(reason, sum(batch.size for batch in self._head))
        self._head.clear()
        self.intake.forget_waiting(reason)


class Loop:
    """Runs and settles batch after batch, on the monitor's thread.

    Attributes:
        error: what ended it; None after a normal end.
    """

    def __init__(self, cfg: "DictConfig", session: Session, feed: Feed, parts: Parts, ending: Ending) -> None:
        """Prepare; `run` does the work."""
        self._cfg = cfg
        self._session = session
        self._ending = ending
        self._executor = SequentialExecutor(parts.stages)
        self._num_failed = 0
        self.feed = feed
        self.error: Exception | None = None

    @property
    def gaps(self) -> dict[str, int]:
        """What is missing from the record."""
        link = self._session.link
        return link.gaps if isinstance(link, PersistentLink) else {}

    def depths(self) -> dict[str, tuple[int, int]]:
        """Depth and capacity of every queue."""
        return {"source": self.feed.intake.depth}

    def send(self, message: str) -> None:
        """Tell the recorder how the workload is doing."""
        self._session.link.send("live", message)

    def run(self) -> None:
        """Warm up, then run until the source ends or is stopped; asks for the run's end itself."""
        start = time.perf_counter()
        try:
            with Inference(self._cfg.device, autocast=autocast_of(self._cfg))():
                self._warm_up()
                seed_everything(self._cfg.seed)
                self._session.record()
                start = time.perf_counter()
                for finished in self._executor.run(self._numbered()):
                    self.settle(finished)
            self._ending.ask("the source ended")
        except Exception as error:
            self.error = error
            self._ending.ask("an error")
        finally:
            self._session.closing.wall_s = time.perf_counter() - start

    def settle(self, finished: Finished) -> None:
        """Say how a batch ended.

        Raises:
            StageError: when it failed and `monitor.on_error=fail`.
        """
        numbered, batch = finished.numbered, finished.numbered.batch
        failure: StageError | None = None
        try:
            check_finished(finished)
        except StageError as error:
            failure = error
        self._session.settle(
            numbered.index,
            status="done" if failure is None else "failed",
            size=batch.size,
            source_batch=batch.index,
            repeat=0,
            root=finished.root,
            start_ns=finished.start_ns,
            wait_ns=finished.wait_ns,
            source_time_ns=batch.source_time_ns,
            error="" if failure is None else str(failure),
        )
        if failure is not None:
            self._fail(failure)

    def _fail(self, failure: StageError) -> None:
        if str(self._cfg.monitor.on_error) == "fail":
            raise failure
        self._num_failed += 1

    def _warm_up(self) -> None:
        times_s: list[float] = []
        for batch in self.feed.look(self._cfg.eval.warmup_batches):
            began = time.perf_counter()
            (finished,) = self._executor.run(iter([Numbered(batch.index, 0, batch)]))
            times_s.append(time.perf_counter() - began)
            if finished.error is not None:
                break  # the run itself will meet it and say so
        if self.feed.intake.is_live:
            self.feed.forget("warmup")
        self._session.closing.warmup = {
            "batches": len(times_s),
            "first_batch_ms": times_s[0] * 1e3 if times_s else None,
            "total_s": sum(times_s),
        }

    def _numbered(self) -> Iterator[Numbered]:
        for index, batch in enumerate(itertools.islice(self.feed, self._cfg.monitor.max_batches)):
            yield Numbered(index, 0, batch)
        if self._cfg.monitor.max_batches is not None and not self.feed.intake.has_ended:
            self._ending.ask(f"monitor.max_batches={self._cfg.monitor.max_batches}")


def _policy(policy: Any) -> Policy:
    when_full = None if policy.when_full is None else str(policy.when_full)
    return Policy(when_full, policy.queue_size, policy.batch_size, policy.batch_wait_ms)


def _live(cfg: "DictConfig") -> dict[str, Any]:
    monitor = cfg.monitor
    return {
        "http": {"host": str(monitor.http.host), "port": int(monitor.http.port)},
        "window_s": float(monitor.window_s),
        "slow_ms": cfg.telemetry.slow_ms,
        "background_rate": float(cfg.telemetry.background_rate),
        "retention": {name: float(monitor.retention[name]) for name in ("max_gb", "max_age_h", "compact_s")},
        "restarts": 0,
        "workload_pid": os.getpid(),
    }
