"""A monitor's main thread, its source and its notes, against fakes; whole runs are in tests/system/test_monitor.py."""

import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from omegaconf import OmegaConf

from mlotel_cli.config.policies import Retention, SourcePolicy, WhenFull
from mlotel_cli.config.schema import MonitorConfig
from mlotel_cli.errors import StageError, UsageError
from mlotel_cli.modes import monitor
from mlotel_cli.modes.monitor import create_intake, monitor_options, supervise
from mlotel_cli.modes.monitor_loop import Ending
from mlotel_cli.modes.monitor_status import Board
from mlotel_cli.snapshot import Gaps, SourceReport
from mlotel_cli.sources import Health, Intake
from mlotel_cli.wire import HttpOptions, Message, MonitorOptions, Report
from tests.modes.test_build import MODULE, NEGATE, SEEN
from tests.support.feeding import HandFed

PATIENCE_S = 30.0
FEEDING = "tests.support.feeding"


def config(**changed: Any) -> Any:
    given = {"device": "cpu", "run": {"name": "n", "dir": "d"}, "source": {"_target_": f"{FEEDING}.HandFed"}} | changed
    return OmegaConf.merge(OmegaConf.structured(MonitorConfig), given)


# -- supervise --------------------------------------------------------------------------------------------------------


class FakeLoop:
    """A loop whose work is a function of the test; its intake can be stopped."""

    def __init__(self, work: Any) -> None:
        self._work = work
        self.stopped = threading.Event()
        intake = SimpleNamespace(
            health=Health(state="connected"), report=lambda: SourceReport(received=3), stop=self.stopped.set
        )
        self.feed = SimpleNamespace(intake=intake)
        self.phase = "running"
        self.error: BaseException | None = None
        self.num_failed, self.last_failure = 0, ""

    def depths(self) -> Mapping[str, tuple[int, int]]:
        return {"source": (0, 8)}

    def run(self) -> None:
        self._work(self)


class FakeView:
    """Notes what it is told; `on_refresh` is called whenever the main thread would draw."""

    def __init__(self, on_refresh: Any = None) -> None:
        self.said: list[str] = []
        self.is_up = False
        self.refreshed_down = False
        self._on_refresh = on_refresh

    def say(self, text: str) -> None:
        self.said.append(text)

    def refresh(self) -> None:
        self.refreshed_down |= not self.is_up
        if self._on_refresh is not None:
            self._on_refresh()

    def __enter__(self) -> Self:
        self.is_up = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_up = False


class Told:
    """A link that notes what the ticker tells the recorder."""

    def __init__(self) -> None:
        self.gaps = Gaps()
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)


@pytest.fixture(autouse=True)
def _main_thread_does_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_REFRESH_S", 0.0)


def supervised(loop: FakeLoop, view: FakeView, ending: Ending, *, grace_s: float = PATIENCE_S) -> tuple[Board, Told]:
    board, link = Board(name="n"), Told()
    supervise(loop, link, view, ending=ending, board=board, grace_s=grace_s)  # type: ignore[arg-type]
    return board, link


def test_a_loop_that_ends_ends_the_run() -> None:
    ending, view = Ending(), FakeView()

    def work(loop: FakeLoop) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert ending.is_awaited  # a signal asks from now on, and does not raise
        loop.phase = "ended"
        ending.ask("the source ended")

    loop = FakeLoop(work)
    board, link = supervised(loop, view, ending)
    assert (board.ending, board.phase, board.queues) == ("the source ended", "ended", {"source": (0, 8)})
    last = link.sent[-1]
    assert isinstance(last, Report)
    assert last.source == SourceReport(received=3)
    assert (view.said, view.is_up, view.refreshed_down) == ([], False, False)
    assert loop.stopped.is_set()


def test_a_signal_stops_the_source_and_batches_under_way_finish() -> None:
    ending, finished = Ending(), []

    def work(loop: FakeLoop) -> None:
        assert loop.stopped.wait(PATIENCE_S)
        finished.append("the last batch")

    view = FakeView(lambda: ending.ask("SIGTERM"))
    supervised(FakeLoop(work), view, ending)
    assert (finished, view.said) == (["the last batch"], [])


def test_a_stage_that_hangs_is_left_when_the_grace_is_over() -> None:
    ending, let_go = Ending(), threading.Event()
    view = FakeView(lambda: ending.ask("SIGINT"))
    supervised(FakeLoop(lambda _: let_go.wait(PATIENCE_S)), view, ending, grace_s=0.0)
    let_go.set()
    assert view.said == ["monitor.grace_s=0 is over; what was under way is left unfinished"]


@pytest.mark.parametrize("error", [StageError("batch 3: stage x raised"), SystemExit(7)])
def test_what_ended_the_loop_is_raised_on_the_main_thread(error: BaseException) -> None:
    ending, view = Ending(), FakeView()

    def work(loop: FakeLoop) -> None:
        loop.error = error
        ending.ask("an error")

    with pytest.raises(type(error)) as raised:
        supervised(FakeLoop(work), view, ending)
    assert (raised.value, view.is_up) == (error, False)


# -- the source -------------------------------------------------------------------------------------------------------


def test_the_source_is_built_behind_the_configured_queue() -> None:
    intake = create_intake(config(source={"_target_": f"{FEEDING}.HandFed", "queue_size": 3, "batch_size": 2}))
    assert (intake.depth, intake.is_live) == ((0, 3), True)
    assert intake.report().kind == "handfed"


def test_a_queue_that_holds_no_batch_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^source\.queue_size=1: allowed: at least source\.batch_size=2$"):
        create_intake(config(source={"_target_": f"{FEEDING}.HandFed", "queue_size": 1, "batch_size": 2}))


def test_an_option_takes_the_first_batch_of_the_source_and_the_run_takes_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(monitor, "open_run", lambda *_, **options: told.update(options))
    SEEN.clear()
    source = HandFed(torch.tensor([1.0]), torch.tensor([2.0]))
    source.end()
    loop = monitor._prepare(
        config(pipeline=MODULE, optimize=NEGATE),
        None,  # type: ignore[arg-type]
        session=SimpleNamespace(tell=told.update),  # type: ignore[arg-type]
        intake=Intake(source, SourcePolicy(WhenFull.block)),
        ending=Ending(),
        options=MonitorOptions(window_s=1.0),
    )
    assert SEEN == [[[1.0]]]
    assert (told["mode"], told["optimize"][0]["stage"]) == ("monitor", "add")
    assert told["monitor"] == MonitorOptions(window_s=1.0)
    assert [batch.data.tolist() for batch in loop.feed] == [[[1.0]], [[2.0]]]


# -- what the recorder is told ----------------------------------------------------------------------------------------


def test_the_recorder_serves_on_the_socket_that_listens_already() -> None:
    cfg = config(
        monitor={"http": {"host": "::1", "port": 0}, "window_s": 2, "retention": {"max_gb": 3}},
        telemetry={"slow_ms": 40, "background_rate": 0.5},
    )
    assert monitor_options(cfg, SimpleNamespace(fileno=lambda: 77)) == MonitorOptions(  # type: ignore[arg-type]
        http=HttpOptions(host="::1", port=0, fd=77),
        window_s=2.0,
        slow_ms=40,
        background_rate=0.5,
        retention=Retention(max_gb=3.0),
    )


@pytest.mark.parametrize("backend", ["off", "nvtx"])
def test_a_monitor_without_recorded_spans_is_refused(backend: str) -> None:
    with pytest.raises(UsageError, match=f"^telemetry.backend={backend}: .*use telemetry.backend=otel$"):
        monitor_options(config(telemetry={"backend": backend}), SimpleNamespace(fileno=lambda: 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("report", "detail", "notes"),
    [
        (SourceReport(received=1, dropped={"full": 1}), "refused", []),
        (SourceReport(), "", ["nothing came from the source: it was silent"]),
        (SourceReport(dropped={"corrupt": 2, "x": 1}), "", ["nothing came from the source: 2 corrupt, 1 x"]),
        (SourceReport(dropped={"corrupt": 2}), "refused", ["nothing came from the source: refused"]),
    ],
)
def test_a_run_without_input_says_why(report: SourceReport, detail: str, notes: list[str]) -> None:
    intake: Any = SimpleNamespace(report=lambda: report, health=Health(detail=detail))
    assert list(monitor._notes(intake)) == notes
