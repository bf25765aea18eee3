"""`mlotel eval` ended in every violent way: what was measured is on disk, and no process is left.

The data set of these runs tells: whenever it is asked for the next batch, the one before is scored and settled, and it
appends that batch's index and the time (a clock that all processes share) to a file. So what must be readable is known.
"""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlotel_cli.store.reading import read_run
from tests.support.preloaded import processes_in_session, processes_naming
from tests.support.wandb_file import find_wandb_file, read_wandb_file

pytestmark = [pytest.mark.system, pytest.mark.slow]

PROMISED_S = 2.5
"""A batch that finished so long before a kill is readable."""
PATIENCE_S = 90
STAMP = struct.Struct("<qq")
ROOT = Path(__file__).resolve().parents[2]
TELLS = """
import os
import struct
import time

from mlotel_cli.dummy import DummyData


class Tells(DummyData):
    def __init__(self, *, path, hold_s=0.0, **rest):
        super().__init__(**rest)
        self.file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        time.sleep(hold_s)

    def __iter__(self):
        for batch in super().__iter__():
            yield batch
            os.write(self.file, struct.pack("<qq", batch.index, time.monotonic_ns()))
"""


def wait_until(condition: Callable[[], object], *, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


@dataclass
class Evaluation:
    """One running `mlotel eval`: its process, its run directory, and what it told."""

    folder: Path
    pid: int
    wait: Callable[[], int]
    recorder: int = 0
    stamps: Path = field(init=False)

    def __post_init__(self) -> None:
        self.stamps = self.folder / "told"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def printed(self) -> str:
        """Everything it printed, as one line: the console wraps where it likes."""
        return " ".join((self.folder / "log").read_text().split())

    def told(self) -> list[tuple[int, int]]:
        """(batch, when it was done) of every batch so far."""
        data = self.stamps.read_bytes() if self.stamps.exists() else b""
        return list(STAMP.iter_unpack(data[: len(data) // STAMP.size * STAMP.size]))

    def wait_for_batches(self, count: int = 1) -> None:
        wait_until(lambda: len(self.told()) >= count)
        self.find_recorder()

    def find_recorder(self) -> None:
        wait_until(lambda: self.pid_of_recorder() is not None)
        self.recorder = self.pid_of_recorder() or 0

    def pid_of_recorder(self) -> int | None:
        found = [pid for pid in processes_naming(self.run_dir) if pid != self.pid]
        return found[0] if found else None

    def kill(self, signum: int) -> int:
        """Send a signal; the time of it."""
        now = time.monotonic_ns()
        os.kill(self.pid, signum)
        return now

    def wait_for_recorder(self) -> None:
        """Until the recorder, and whatever it started, is gone."""
        assert self.recorder
        wait_until(lambda: not processes_in_session(self.recorder))

    def done_before(self, moment_ns: int) -> set[int]:
        """Batches that must be readable `moment_ns`."""
        return {batch for batch, when in self.told() if when < moment_ns - PROMISED_S * 1e9}

    def rows(self) -> set[int]:
        frame = read_run(self.run_dir).batches
        return set(frame.filter(status="scored")["batch"]) if frame.width else set()


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("project")
    (project / "tells.py").write_text(TELLS)
    (project / "conf" / "data").mkdir(parents=True)
    target = "_target_: tells.Tells\nnum_batches: 100000\npath: ???\nhold_s: 0.0\n"
    (project / "conf" / "data" / "tells.yaml").write_text(target)
    return project / "conf"


def arguments(conf: Path, folder: Path, *more: str) -> list[str]:
    return [
        "eval",
        *("--config-dir", str(conf)),
        "pipeline=dummy",
        "pipeline.time_scale=0.05",
        "data=tells",
        f"data.path={folder / 'told'}",
        "eval.warmup_batches=0",
        "tracker.mode=offline",
        f"run.dir={folder / 'run'}",
        *more,
    ]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "OTEL_"))}
    return kept | {"OMP_NUM_THREADS": "1"}


class Server:
    """Starts evaluations one after the other from a process that has torch imported already."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.preloaded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
            text=True,
        )

    def start(self, folder: Path, words: list[str]) -> Evaluation:
        assert self._process.stdin
        assert self._process.stdout
        job = {"arguments": words, "log": str(folder / "log"), "cwd": str(folder)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Evaluation(folder, int(self._process.stdout.readline()), self._answer)

    def _answer(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def cleaned(evaluation: Evaluation) -> Generator[Evaluation]:
    """Whatever a test found, it leaves no process."""
    try:
        yield evaluation
    finally:
        for pid in {evaluation.pid, *processes_naming(evaluation.run_dir)}:
            if processes_naming(evaluation.run_dir) or Path(f"/proc/{pid}").exists():
                for member in processes_in_session(pid):
                    os.kill(member, signal.SIGKILL)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


@pytest.fixture
def start(server: Server, conf: Path, tmp_path: Path) -> Iterator[Callable[..., Evaluation]]:
    """Starts one evaluation, from the preloaded process."""
    with_cleaning: list[object] = []

    def begin(*more: str) -> Evaluation:
        context = cleaned(server.start(tmp_path, arguments(conf, tmp_path, *more)))
        evaluation = context.__enter__()
        with_cleaning.append(context)
        return evaluation

    yield begin
    for context in with_cleaning:
        context.__exit__(None, None, None)  # type: ignore[attr-defined]


def check_ended(evaluation: Evaluation, *, status: str, moment_ns: int) -> None:
    """Everything that is true of a run whose workload is gone."""
    evaluation.wait_for_recorder()
    run_dir = evaluation.run_dir
    info = json.loads((run_dir / "run.json").read_text())
    assert info["status"] == status
    assert info["summary"]["batches"]["scored"] > 0
    rows = evaluation.rows()
    assert evaluation.done_before(moment_ns) <= rows
    assert len(list((run_dir / "batches.parquet").iterdir())) == 1
    assert list(run_dir.rglob("*.tmp")) == []
    spans = read_run(run_dir).spans
    assert rows <= set(spans.filter(name="batch")["batch"])
    file = read_wandb_file(find_wandb_file(run_dir))
    assert not file.torn
    assert file.exit_code == 1
    logged = [row["batch"] for row in file.history if "accuracy/score" in row]
    assert logged == sorted(rows)
    assert file.summary["batches"] == info["summary"]["batches"]


# -- kill -9 of the workload, at twenty moments ---------------------------------------------------------------------


@pytest.mark.timeout(400)
def test_a_workload_killed_at_any_moment_loses_nothing_that_was_done(conf: Path, tmp_path: Path) -> None:
    draw = random.Random(20)
    moments_s = [draw.uniform(0.0, 4.5) for _ in range(20)]
    local = threading.local()
    servers: list[Server] = []

    def kill_once(number: int) -> None:
        if not hasattr(local, "server"):
            local.server = Server()
            servers.append(local.server)
        folder = tmp_path / str(number)
        folder.mkdir()
        with cleaned(local.server.start(folder, arguments(conf, folder))) as evaluation:
            evaluation.wait_for_batches()
            time.sleep(moments_s[number])  # not for luck: the moment is what is tried
            before_ns = time.monotonic_ns()
            info = evaluation.run_dir / "run.json"
            # The recorder's own start is not part of the promise: on a busy machine it may take longer than torch's.
            if info.exists() and time.time() - info.stat().st_mtime > PROMISED_S:
                assert evaluation.done_before(before_ns) <= evaluation.rows()
            moment_ns = evaluation.kill(signal.SIGKILL)
            assert evaluation.wait() == -signal.SIGKILL
            check_ended(evaluation, status="interrupted", moment_ns=moment_ns)
            assert moment_ns - evaluation.told()[0][1] >= moments_s[number] * 1e9 * 0.9

    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(kill_once, range(len(moments_s))))
    finally:
        for server in servers:
            server.close()


def test_rows_are_readable_while_the_run_goes_on(start: Callable[..., Evaluation]) -> None:
    evaluation = start()
    wait_until((evaluation.run_dir / "run.json").exists)
    recorder_is_there_ns = time.monotonic_ns()
    evaluation.wait_for_batches()

    def promised() -> set[int]:
        """What must be readable now, of the batches since the recorder began."""
        done = evaluation.done_before(time.monotonic_ns())
        return done - {batch for batch, when in evaluation.told() if when < recorder_is_there_ns}

    wait_until(lambda: len(promised()) > 20)
    expected = promised()
    run = read_run(evaluation.run_dir)
    assert run.status == "running"
    assert expected <= evaluation.rows()
    assert expected <= set(run.samples["batch"])
    assert expected <= set(run.spans.filter(name="model_3")["batch"])
    moment_ns = evaluation.kill(signal.SIGTERM)
    assert evaluation.wait() == 143
    check_ended(evaluation, status="interrupted", moment_ns=moment_ns)


# -- the polite signals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGINT to the group"])
def test_a_signal_ends_the_real_command_with_everything(conf: Path, tmp_path: Path, how: str) -> None:
    """As a service manager, `kill -INT`, and Ctrl-C in a terminal do it; with the command as a shell starts it."""
    command = Path(sys.executable).parent / "mlotel"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [command, *arguments(conf, tmp_path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env=environment(),
            start_new_session=True,
        )
    with cleaned(Evaluation(tmp_path, process.pid, process.wait)) as evaluation:
        evaluation.wait_for_batches(20)
        signum = signal.SIGTERM if how == "SIGTERM" else signal.SIGINT
        moment_ns = time.monotonic_ns()
        (os.killpg if "group" in how else os.kill)(process.pid, signum)
        assert process.wait(PATIENCE_S) == 128 + signum
        # The command ends after its recorder: what it leaves is complete at once.
        assert json.loads((evaluation.run_dir / "run.json").read_text())["status"] == "interrupted"
        check_ended(evaluation, status="interrupted", moment_ns=moment_ns)
        done = {batch for batch, _ in evaluation.told()}
        assert done <= evaluation.rows()
        summary = read_run(evaluation.run_dir).summary
        assert summary.telemetry.spans_lost == 0
        assert summary.accuracy["score"].value is not None
        assert "Traceback" not in evaluation.printed
        assert "interrupted: " in evaluation.printed


def test_a_second_ctrl_c_leaves_at_once_and_the_recorder_finishes(start: Callable[..., Evaluation]) -> None:
    evaluation = start()
    evaluation.wait_for_batches(20)
    os.kill(evaluation.recorder, signal.SIGSTOP)  # so that the first one cannot be done before the second
    moment_ns = evaluation.kill(signal.SIGINT)
    # The first one is being followed once no batch comes any more; two signals within 0.3 s count as one.
    wait_until(lambda: time.monotonic_ns() - max(moment_ns, evaluation.told()[-1][1]) > 500_000_000)
    second_ns = evaluation.kill(signal.SIGINT)
    assert evaluation.wait() == 130
    assert time.monotonic_ns() - second_ns < 30e9  # it waits for 90 s when the second one is not heard
    os.kill(evaluation.recorder, signal.SIGCONT)
    check_ended(evaluation, status="interrupted", moment_ns=moment_ns)


def test_a_signal_while_closing_waits_for_the_files(start: Callable[..., Evaluation]) -> None:
    evaluation = start("data.num_batches=40")
    evaluation.wait_for_batches()
    info = evaluation.run_dir / "run.json"
    wait_until(lambda: info.exists() and json.loads(info.read_text())["summary"])
    os.kill(evaluation.recorder, signal.SIGSTOP)
    closing = json.loads(info.read_text())["status"] == "running"
    if closing:  # stopped between its summary and the end of W&B, as nearly always
        evaluation.kill(signal.SIGTERM)
        wait_until(lambda: "Finishing files" in evaluation.printed)
    os.kill(evaluation.recorder, signal.SIGCONT)
    assert evaluation.wait() == (143 if closing else 0)
    evaluation.wait_for_recorder()
    run = read_run(evaluation.run_dir)
    assert (run.info["status"], run.summary.batches) == ("complete", {"scored": 40})
    assert read_wandb_file(find_wandb_file(evaluation.run_dir)).exit_code == 0


# -- starting up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_never_began_leaves_no_run_and_no_process(
    start: Callable[..., Evaluation], signum: int, code: int
) -> None:
    evaluation = start("data.hold_s=100")
    wait_until(evaluation.stamps.exists)  # it is building its data set now
    evaluation.find_recorder()
    evaluation.kill(signum)
    assert evaluation.wait() == code
    evaluation.wait_for_recorder()
    assert not (evaluation.run_dir / "run.json").exists()
    assert list(evaluation.run_dir.glob("*.parquet")) == []


# -- the recorder --------------------------------------------------------------------------------------------------


def test_a_recorder_that_is_killed_ends_the_run_with_a_clear_message(start: Callable[..., Evaluation]) -> None:
    evaluation = start()
    evaluation.wait_for_batches()
    # Long enough that the promise is about something: that much is readable without a recorder, too.
    wait_until(lambda: len(evaluation.done_before(time.monotonic_ns())) > 20)
    moment_ns = time.monotonic_ns()
    os.kill(evaluation.recorder, signal.SIGKILL)
    assert evaluation.wait() == 1
    assert "The recorder process ended (exit code -9: SIGKILL" in evaluation.printed
    assert f"is readable in {evaluation.run_dir}" in evaluation.printed
    assert "Traceback" not in evaluation.printed
    evaluation.wait_for_recorder()  # its wandb-core as well
    info = json.loads((evaluation.run_dir / "run.json").read_text())
    assert info["status"] == "failed"
    assert "exit code -9" in info["error"]
    assert len(evaluation.done_before(moment_ns)) > 20
    assert evaluation.done_before(moment_ns) <= evaluation.rows()
