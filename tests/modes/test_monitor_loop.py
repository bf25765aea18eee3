"""The monitor's loop against a session that only notes; whole runs are in tests/system/test_monitor.py."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlotel_cli.config.policies import SourcePolicy, WhenFull
from mlotel_cli.errors import DataError, StageError
from mlotel_cli.execute import Inference, create_executor
from mlotel_cli.modes.build import Built
from mlotel_cli.modes.monitor_loop import SOURCE_ENDED, Ending, Feed, Loop
from mlotel_cli.modes.run import Closing
from mlotel_cli.sources import Endless, Intake
from mlotel_cli.wire import Settled
from tests.support.feeding import HandFed, until
from tests.support.parts import Numbers, Raises, Stages


@dataclass
class Noting:
    """A session that notes what it is told."""

    closing: Closing = field(default_factory=Closing)
    rows: list[Settled] = field(default_factory=list)
    recorded: int = 0

    def wait_for_room(self) -> None: ...

    def record(self) -> None:
        self.recorded = len(self.rows) + 1

    def tell(self, info: Any) -> None: ...

    def settle(self, settled: Settled) -> None:
        self.rows.append(settled)

    def column(self, name: str) -> list[Any]:
        return [getattr(row, name) for row in self.rows]


def loop(
    source: Any,
    pipeline: Any = None,
    *,
    policy: SourcePolicy | None = None,
    warmup_batches: int = 0,
    max_batches: int | None = None,
    on_error: str = "skip",
    kind: str = "sequential",
) -> tuple[Loop, Noting, Ending]:
    cfg: Any = SimpleNamespace(
        seed=0,
        device="cpu",
        eval=SimpleNamespace(warmup_batches=warmup_batches),
        monitor=SimpleNamespace(max_batches=max_batches, on_error=on_error),
    )
    inference, stages = Inference("cpu"), (pipeline or Stages()).stages
    built = Built(pipeline, stages, create_executor(stages, inference=inference, kind=kind), inference)
    session, ending = Noting(), Ending()
    feed = Feed(Intake(source, policy or SourcePolicy(queue_size=100)))
    return Loop(cfg, session, feed, built, ending), session, ending


@pytest.fixture(params=["sequential", "pipelined"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def numbers(*values: int) -> HandFed:
    source = HandFed(*(torch.tensor([float(value)]) for value in values))
    source.end()
    return source


def test_every_batch_is_settled_until_the_source_ends(kind: str) -> None:
    running, session, ending = loop(numbers(0, 1, 2), kind=kind)
    running.run()
    assert (ending.reason, running.error, running.phase) == (SOURCE_ENDED, None, "ended")
    assert session.column("batch") == session.column("source_batch") == [0, 1, 2]
    assert session.column("status") == ["done"] * 3
    assert session.column("size") == [1] * 3
    assert all((row.source_time_ns or 0) <= row.start_ns for row in session.rows)
    assert session.closing.wall_s is not None
    assert (session.closing.scoring_s, session.recorded) == (0.0, 1)


def test_max_batches_ends_an_endless_source(kind: str) -> None:
    running, session, ending = loop(Endless(Numbers(num_batches=2)), max_batches=5, kind=kind)
    running.run()
    running.feed.intake.close()
    assert ending.reason == "monitor.max_batches=5"
    assert session.column("batch") == [0, 1, 2, 3, 4]


def test_a_batch_that_fails_is_counted_and_the_others_go_on(kind: str) -> None:
    running, session, ending = loop(numbers(0, 1, 2), Raises(at=1), policy=SourcePolicy(WhenFull.block, 4), kind=kind)
    running.run()
    assert session.column("status") == ["done", "failed", "done"]
    assert session.rows[1].error == "batch 1: stage double raised RuntimeError: no double of 2 [see manual]"
    assert (running.num_failed, running.last_failure) == (1, session.rows[1].error)
    assert (running.error, ending.reason) == (None, SOURCE_ENDED)


def test_a_batch_that_fails_ends_the_run_when_asked_to(kind: str) -> None:
    running, session, ending = loop(numbers(0, 1, 2), Raises(at=1), on_error="fail", kind=kind)
    running.run()
    assert session.column("status") == ["done", "failed"]
    assert isinstance(running.error, StageError)
    assert ending.reason == "an error"


def test_a_source_that_fails_ends_the_run() -> None:
    source = HandFed(torch.zeros(1))
    source.fail(OSError("cable pulled"))
    running, session, ending = loop(source)
    running.run()
    assert session.column("status") == ["done"]
    assert isinstance(running.error, DataError)
    assert ending.reason == "an error"


def test_a_stage_that_leaves_the_program_ends_the_run(kind: str) -> None:
    """Swallowed, it would leave a monitor that waits for ever."""

    def leave(_: torch.Tensor) -> None:
        raise SystemExit(7)

    running, _, ending = loop(numbers(0, 1), Stages(double=leave), kind=kind)
    running.run()
    assert isinstance(running.error, SystemExit)
    assert ending.reason == "an error"


def test_a_data_set_is_warmed_up_with_and_then_run_whole() -> None:
    running, session, _ = loop(Endless(Numbers(num_batches=4)), warmup_batches=2, max_batches=4)
    running.run()
    running.feed.intake.close()
    assert session.column("source_batch") == [0, 1, 2, 3]
    assert session.closing.warmup.batches == 2
    assert running.feed.intake.report().dropped.get("warmup") is None


def test_live_input_of_the_warm_up_is_over() -> None:
    """Its latency would tell of the warm-up, not of the pipeline."""
    source = numbers(0, 1, 2, 3, 4)
    running, session, _ = loop(source, warmup_batches=2)
    intake = running.feed.intake
    next(iter(running.feed.look(1)))
    until(lambda: intake.report().received == 5)
    source.feed(torch.tensor([9.0]))
    running.run()
    assert session.rows == []
    assert intake.report().dropped == {"warmup": 5}


def test_a_stage_that_fails_in_the_warm_up_fails_in_the_run() -> None:
    running, session, _ = loop(Endless(Numbers(num_batches=3)), Raises(at=0), warmup_batches=3, max_batches=2)
    running.run()
    running.feed.intake.close()
    assert session.closing.warmup.batches == 1
    assert session.column("status") == ["failed", "done"]


def test_stopping_the_source_ends_the_loop(kind: str) -> None:
    running, session, ending = loop(HandFed(torch.zeros(1)), kind=kind)
    thread = threading.Thread(target=running.run)
    thread.start()
    until(lambda: session.rows)
    ending.ask("SIGTERM")
    running.feed.intake.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert (ending.reason, running.error) == ("SIGTERM", None)


def test_depths_of_all_queues() -> None:
    assert loop(HandFed())[0].depths() == {"source": (0, 100)}
    assert loop(HandFed(), kind="pipelined")[0].depths() == {"source": (0, 100), "add": (0, 2), "double": (0, 2)}


def test_what_was_looked_at_comes_again() -> None:
    feed = Feed(Intake(numbers(0, 1, 2), SourcePolicy(WhenFull.block)))
    assert [int(batch.data) for batch in feed.look(2)] == [0, 1]
    assert [int(batch.data) for batch in feed.look(1)] == [0]
    assert [int(batch.data) for batch in feed] == [0, 1, 2]
    assert list(feed.look(1)) == []


def test_the_first_reason_stays() -> None:
    ending = Ending()
    ending.ask("SIGTERM")
    ending.ask("the source ended")
    assert ending.reason == "SIGTERM"


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    until(lambda: threading.active_count() <= before + 1)  # a reader that waits for a test's source
