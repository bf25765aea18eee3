"""The loop of `mlotel monitor`: warms up, runs every batch and tells how it ended. It has its own thread."""

import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlotel_cli.errors import StageError
from mlotel_cli.execute import Finished, Numbered
from mlotel_cli.modes.batch_steps import check_finished, result_waiter, seed_everything, timed, warm_up
from mlotel_cli.modes.build import Built
from mlotel_cli.modes.run import Settling
from mlotel_cli.records import Batch
from mlotel_cli.sources import Intake

if TYPE_CHECKING:
    from omegaconf import DictConfig

SOURCE_ENDED = "the source ended"


@dataclass(slots=True)
class Ending:
    """Why the run should end. The main thread polls it. It has no lock, because a signal handler sets it too.

    Attributes:
        reason: empty while the run goes on.
        is_awaited: whether the main thread polls already.
    """

    reason: str = ""
    is_awaited: bool = False

    def ask(self, reason: str) -> None:
        """Ask for the end of the run; the first reason stays."""
        self.reason = self.reason or reason


class Feed:
    """The intake's batches in one pass; the first ones can be looked at beforehand."""

    def __init__(self, intake: Intake) -> None:
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
        """Drop the batches that were looked at and the items that wait; the intake counts them under `reason`."""
        self.intake.count_dropped(reason, sum(batch.size for batch in self._head))
        self._head.clear()
        self.intake.forget_waiting(reason)


class Loop:
    """Runs and settles batch after batch.

    Attributes:
        feed: where batches come from.
        phase: connecting | warming up | running | ended.
        error: what ended it; None after a normal end.
        num_failed: batches that failed.
        last_failure: why the newest of them did.
    """

    def __init__(self, cfg: "DictConfig", session: Settling, feed: Feed, built: Built, ending: Ending) -> None:
        self._cfg = cfg
        self._session = session
        self._built = built
        self._executor = built.executor
        self._wait_for_result = result_waiter(cfg.device)
        self._ending = ending
        self._fails = str(cfg.monitor.on_error) == "fail"
        self.feed = feed
        self.phase = "connecting"
        self.error: BaseException | None = None
        self.num_failed = 0
        self.last_failure = ""

    def depths(self) -> dict[str, tuple[int, int]]:
        """Return how many items and batches wait now, and how many may, by the name of what they wait for."""
        return {"source": self.feed.intake.depth, **self._executor.depths()}

    def run(self) -> None:
        """Run batches until the source ends, `monitor.max_batches` have run or an error; then ask for the run's end.

        It raises nothing: see `error`.
        """
        try:
            with self._built.inference():
                self._warm_up()
                seed_everything(self._cfg.seed)
                self._session.record()
                self.phase = "running"
                with timed(self._session.closing):
                    self._run_batches()
            self._ending.ask(SOURCE_ENDED)
        except BaseException as error:  # also SystemExit of a stage; the main thread raises it again
            self.error = error
            self._ending.ask("an error")
        finally:
            self.phase = "ended"
            self._session.closing.scoring_s = self._session.closing.caller_s = 0.0

    def _run_batches(self) -> None:
        with closing(self._executor.run(self._numbered(), wait_for_room=self._session.wait_for_room)) as running:
            for finished in running:
                self._wait_for_result()
                self.settle(finished)

    def settle(self, finished: Finished) -> None:
        """Tell the recorder how a batch ended. Every batch passes here once.

        Raises:
            StageError: when it failed and `monitor.on_error=fail`.
        """
        failure: StageError | None = None
        try:
            check_finished(finished)
        except StageError as error:
            failure = error
        status, error = ("done", "") if failure is None else ("failed", str(failure))
        self._session.settle(finished.settled(status, error=error))
        if failure is not None:
            self.num_failed += 1
            self.last_failure = str(failure)
            if self._fails:
                raise failure

    def _warm_up(self) -> None:
        """Run the first batches, with spans off. The run takes them again; live input is dropped instead."""
        warmup, error = warm_up(self._executor, self._first(), self._wait_for_result, one_by_one=True)
        if error is not None:
            raise error
        if self.feed.intake.is_live:
            self.feed.forget("warmup")
        self._session.closing.warmup = warmup

    def _first(self) -> Iterator[Batch]:
        for batch in self.feed.look(self._cfg.eval.warmup_batches):
            self.phase = "warming up"
            yield batch

    def _numbered(self) -> Iterator[Numbered]:
        limit = self._cfg.monitor.max_batches
        count = 0
        for batch in itertools.islice(self.feed, limit):
            yield Numbered(count, 0, batch)
            count += 1
        if count == limit:
            self._ending.ask(f"monitor.max_batches={limit}")
