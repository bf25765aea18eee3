"""`mlotel profile`: runs an evaluation under a profiler, and attributes the device's work to its spans.

The profiler runs another process (profiled.py) with the same configuration. When that has ended, this one reads the
recording and sends its ranges to the recorder as if they were spans. So a profile has the rows, tables and files of an
evaluation, and also stages.json.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mlotel_cli import nsys
from mlotel_cli.config import check as config
from mlotel_cli.config.schema import Job
from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.modes.opening import open_run, recorder_imports
from mlotel_cli.modes.results import Progress
from mlotel_cli.modes.run import Session, reporting
from mlotel_cli.profile.attribution import Attributed, attribute
from mlotel_cli.profile.profile_view import attachment, print_stages
from mlotel_cli.profile.profiled import Spec
from mlotel_cli.profile.profilers import Profiler, make_profiler
from mlotel_cli.profile.replay import replay
from mlotel_cli.profile.stages import ProfilerAbout, ProfileSummary, summarise_stages
from mlotel_cli.records import Recorded
from mlotel_cli.screen import sayer, stderr
from mlotel_cli.store.layout import PROFILE, STAGES_JSON
from mlotel_cli.typed_json import from_json
from mlotel_cli.wire import Closing, Settled, from_plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

_POLL_S = 0.1
_END_S = 30.0
"""How long a process that was asked to end may take before it is killed."""
_MEASURED = ("accuracy", "accuracy_ci95", "wall_s", "scoring_s", "caller_s", "cpu_s", "cores", "warmup")
"""Fields of `Closing` that only the profiled process knows."""


def run(cfg: "DictConfig", job: Job) -> Mapping[str, Any]:
    """Profile as `cfg` says; prints the command line, progress and the closing tables.

    Returns:
        run.json's content.

    Raises:
        UsageError: when the profiler is not installed, or the configuration cannot be built.
        MlotelError: when the workload failed, or the profiler left nothing to read, with the reason and the next step.
        Interrupted: after a signal; what was recorded until then is kept.
    """
    console = stderr()
    profiler = make_profiler(cfg, job.output_dir)
    session = Session(job.output_dir, say=sayer(console), imports=recorder_imports(cfg.tracker.mode))
    profile = Profile(cfg, job.output_dir, session, profiler, console)
    try:
        with reporting(session):
            open_run(session, cfg, job, mode="profile", backend="off")
            profile.run()
    finally:
        if profile.stages is not None:
            print_stages(profile.stages, job.output_dir)
    return session.info or {}


@dataclass(slots=True)
class Row:
    """A batch as the profiled process settled it, and the values that it gave to `record()`."""

    settled: Settled
    recorded: list[Recorded]


class Results:
    """What the profiled process wrote so far; see `profile.profiled.ResultFile`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid: int | None = None
        self.started_ns: int | None = None
        self.infos: list[dict[str, Any]] = []
        self.closing: dict[str, Any] | None = None
        self._rows: dict[int, Row] = {}
        self._offset = 0

    @property
    def rows(self) -> list[Row]:
        """One a batch."""
        return list(self._rows.values())

    def read(self) -> Sequence[Row]:
        """Take in what is new, whole lines only; returns the new rows.

        After a Ctrl-C in the middle of it the next call reads the same lines once more.
        """
        before = len(self._rows)
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text.rfind(b"\n") + 1
        for line in text[:whole].splitlines():
            ((kind, value),) = json.loads(line).items()
            if kind == "started":
                self.pid, self.started_ns = value["pid"], value["time_ns"]
            elif kind == "settle":
                settled = from_plain(value["settled"], Settled)
                recorded = [(name, number, unit) for name, number, unit in value["recorded"]]
                self._rows[settled.batch] = Row(settled, recorded)
            elif kind == "info":
                self.infos.append(value)
            else:
                self.closing = value
        self._offset += whole
        return self.rows[before:]


class Profile:
    """Runs one profile, from the process that waits for it.

    Attributes:
        stages: content of stages.json, once the recording is read.
    """

    def __init__(
        self, cfg: "DictConfig", run_dir: Path, session: Session, profiler: Profiler, console: Console
    ) -> None:
        self.stages: ProfileSummary | None = None
        self._cfg = cfg
        self._run_dir = run_dir
        self._session = session
        self._profiler = profiler
        self._console = console
        self._log = run_dir / f"{PROFILE}.log"
        self._spec = run_dir / f".{PROFILE}.spec.json"
        self._results = Results(run_dir / f".{PROFILE}.results.jsonl")

    def run(self) -> None:
        """Run the workload under the profiler, and give the recorder the results of both."""
        command = self._profiler.command(self._spec)
        sayer(self._console)(f"$ {shlex.join(command)}")
        about = {**self._profiler.describe(), "command": command}
        self._session.tell({"profiler": about})
        interrupted, failure, said = self._run(command)
        if self._results.pid is None and nsys.lost_start(said):
            interrupted, failure, said = self._run(command)
        missing = self._take(said, about)
        if interrupted is not None:
            raise interrupted
        if failure is not None or missing is not None:
            raise failure or missing or AssertionError
        self._results.path.unlink()

    # -- the process ----------------------------------------------------------------------------------------------

    def _run(self, command: list[str]) -> tuple[KeyboardInterrupt | None, MlotelError | None, str]:
        """Run the process to its end; return the user's interrupt, the error, and all that the process printed."""
        interrupted: KeyboardInterrupt | None = None
        failure: MlotelError | None = None
        with self._written_spec(), self._started(command) as process:
            try:
                failure = self._wait(process)
            except KeyboardInterrupt as stop:
                interrupted = stop
                self._end(process)
        self._results.read()
        said = self._log.read_text(encoding="utf-8", errors="replace")
        return interrupted, failure or self._failure(process.returncode, said), said

    @contextlib.contextmanager
    def _written_spec(self) -> Generator[None]:
        """Write the file that the process reads, for its owner alone; delete it in the end. It may hold passwords."""
        settings = config.plain(self._cfg)
        settings["telemetry"]["otlp"]["headers"] = {}  # the process sends nothing
        spec = Spec(
            config=settings,
            backend=self._profiler.backend,
            results=str(self._results.path.absolute()),
            trace=str((self._run_dir / f"{PROFILE}.trace.json").absolute()),
            batches=self._cfg.profile.batches,
            parent=os.getpid(),
            path=[entry or os.getcwd() for entry in sys.path],
            max_names=self._cfg.telemetry.max_names,
        )
        self._spec.touch(mode=0o600)
        try:
            self._spec.write_text(json.dumps(asdict(spec), default=str), encoding="utf-8")
            yield
        finally:
            self._spec.unlink()

    @contextlib.contextmanager
    def _started(self, command: list[str]) -> Generator["subprocess.Popen[bytes]"]:
        """Start the process in its own session, so that a Ctrl-C in the terminal reaches only this process."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        try:
            with self._log.open("wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except PermissionError as error:
            raise UsageError(f"{command[0]} may not be executed (no permission): {error}") from error
        except OSError as error:
            raise MlotelError(f"{command[0]} could not be started: {error}") from error
        try:
            yield process
        finally:
            if process.poll() is None:
                self._kill(process)

    def _wait(self, process: "subprocess.Popen[bytes]") -> MlotelError | None:
        """Show progress until the process has ended; return an error if it had to be killed."""
        ended_at: float | None = None
        has_begun = False
        with Progress(self._console, self._cfg.profile.batches) as progress:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                    return None
                for row in self._results.read():
                    if not has_begun:
                        progress.start()
                        has_begun = True
                    progress.advance(row.settled.size, row.settled.accuracy)
                if self._results.closing is None:
                    continue
                ended_at = ended_at or time.monotonic()
                if time.monotonic() - ended_at > self._cfg.profiler.timeout_s:
                    self._end(process)
                    return MlotelError(
                        f"the profiler did not finish its report within profiler.timeout_s="
                        f"{self._cfg.profiler.timeout_s:g} s after the last batch; its output is in {self._log}"
                    )

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """Ask the workload to end and wait for the profiler's report; kill both if they take too long."""
        self._results.read()
        with contextlib.suppress(ProcessLookupError):
            if self._results.pid is not None and self._results.closing is None:
                os.kill(self._results.pid, signal.SIGINT)
            elif self._results.pid is None:
                os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._kill(process)

    def _kill(self, process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if self._results.pid is not None and self._results.closing is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._results.pid, signal.SIGKILL)
        process.wait()

    def _failure(self, code: int, said: str) -> MlotelError | None:
        """Return the workload's own error, or the best explanation when it left none."""
        closing = self._results.closing
        if closing is not None:
            if not closing["error"]:
                return None
            return (UsageError if closing["exit_code"] == UsageError.exit_code else MlotelError)(closing["error"])
        ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if full := nsys.why_full(self._run_dir, printed=said):
            return MlotelError(f"the profile broke off ({ended}), {full}. {nsys.free_space(self._run_dir)}")
        if refused := nsys.why_refused(self._run_dir, printed=said):
            return MlotelError(f"the profile broke off ({ended}), no permission: {refused}. Its output: {self._log}")
        last = _last_lines(said) or "it printed nothing"
        if self._results.pid is None:
            return MlotelError(f"the profiler ended before the run began ({ended}): {last}. Its output: {self._log}")
        return MlotelError(f"the profiled process ended without saying why ({ended}): {last}. Its output: {self._log}")

    # -- what it left ---------------------------------------------------------------------------------------------

    def _take(self, said: str, about: Mapping[str, Any]) -> MlotelError | None:
        """Read the recording and give everything to the recorder; without a recording, rows have no times."""
        attributed: Attributed | None = None
        missing: MlotelError | None = None
        if self._results.rows or self._results.closing is not None:
            try:
                attributed = attribute(self._profiler.read(said))
            except MlotelError as error:
                missing = error
                self._session.tell({"notes": [str(error)]})
        if attributed is not None:
            top_kernels: int = self._cfg.profile.top_kernels
            profiler = from_json(ProfilerAbout, about)
            self.stages = summarise_stages(attributed, profiler=profiler, top_kernels=top_kernels)
            path = self._run_dir / STAGES_JSON
            path.write_text(json.dumps(self.stages.to_json(), indent=2), encoding="utf-8")
            self._session.attach(attachment(self.stages, [*self._profiler.files(), path]))
        rows = self._results.rows
        recorded = {row.settled.batch: row.recorded for row in rows}
        started_ns, link = self._results.started_ns, self._session.link
        opened = replay(attributed, link, started_ns=started_ns, recorded=recorded) if attributed else {}
        for row in rows:
            self._session.settle(replace(row.settled, opened=opened.get(row.settled.batch, 0)))
            self._session.wait_for_room()
        self._take_closing()
        return missing

    def _take_closing(self) -> None:
        for info in self._results.infos:
            self._session.tell(info)
        if self._results.closing is None:
            return
        given, closing = from_plain(self._results.closing, Closing), self._session.closing
        for measured in _MEASURED:
            setattr(closing, measured, getattr(given, measured))
        closing.telemetry.profiled_faults = given.telemetry.faults or None


def _last_lines(said: str) -> str:
    """Return the last lines that are not empty, and that come before a usage text."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    usage = next((number for number, line in enumerate(lines) if line.lower().startswith("usage:")), 0)
    return " | ".join((lines[:usage] if usage else lines)[-3:]).removesuffix(".")
