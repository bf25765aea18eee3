"""One W&B run of the recorder process: decides online or offline, opens the run, and ends it in bounded time.

It knows the wandb library and no batches. All of it runs on the sink's own thread, in a process that owns its
environment; wandb is imported inside functions. It never prompts: it looks credentials up before wandb would ask.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlotel_cli.config.policies import TrackerOptions
from mlotel_cli.recorder.wandb.wandb_rows import AXIS, SECTIONS
from mlotel_cli.recorder.wandb.wandb_windows import WINDOW_AXIS, WINDOW_SECTIONS, Bins
from mlotel_cli.wire import Attachment

Mode = Literal["online", "offline"]
FLUSH_INTERVAL_S = 1.0
"""How often rows reach the local file: a crash of the recorder can lose those of the last second."""


@dataclass(slots=True, kw_only=True)
class TrackerSettings(TrackerOptions):
    """How a run appears in W&B and how long it may take.

    `mode` auto obeys WANDB_MODE; where that is unset, auto is online when a key is configured for the W&B host, else
    offline.

    Attributes:
        name: the run's name.
        job_type: the mlotel command.
        dir: the run directory; all files of W&B lie in its `wandb` folder.
        rows_per_minute: online, rows above this rate are merged.
        max_queued_rows: number of rows that may wait for W&B before `write` blocks.
        write_timeout_s: how long `write` may block before rows are dropped.
        system_metrics: let W&B sample CPU, memory and GPU of the workload every 15 s.
        window_s: seconds that one row of a monitor sums up; None means one row per batch.
        started_s: start of the run, in seconds since the epoch; windows count from it.
        resume_id: the W&B run of an earlier recorder of this run, which this one continues.
    """

    name: str
    job_type: str
    dir: Path
    rows_per_minute: float = 1000.0
    max_queued_rows: int = 20_000
    write_timeout_s: float = 10.0
    system_metrics: bool = True
    window_s: float | None = None
    started_s: float = 0.0
    resume_id: str | None = None


def open_run(settings: TrackerSettings, *, config: Mapping[str, Any], say: Callable[[str], None]) -> "WandbRun":
    """Open the run that `settings.mode` asks for; offline when online is not possible.

    It imports wandb (about a second) and starts wandb-core. Without a server it takes `init_timeout_s` longer.
    """
    _own_environment(settings.dir)
    run_id = settings.resume_id or secrets.token_hex(6)
    mode, host, reason = _choose_mode(settings)
    if mode == "online":
        try:
            run = WandbRun(settings, mode="online", run_id=run_id, config=config)
        except Exception as error:  # the library raises many kinds here, and each means that online is not possible
            _teardown()
            for leftover in (settings.dir / "wandb").glob(f"run-*-{run_id}"):
                shutil.rmtree(leftover, ignore_errors=True)
            reason = f"{host} did not accept the run ({first_line(error)})"
        else:
            say(f"W&B: {run.url}")
            return run
    if settings.resume_id is not None:
        # W&B resumes only on the server: a second offline run with the same id would replace the first when synced.
        run_id = secrets.token_hex(6)
        say(f"W&B: run {settings.resume_id} cannot go on offline; what follows is a second run, {run_id}")
    try:
        run = WandbRun(settings, mode="offline", run_id=run_id, config=config)
    except Exception:
        _teardown()
        raise
    why = f"{reason}; recording offline" if reason else "recording offline"
    say(f"W&B: {why}. Upload later with: wandb sync {settings.dir / run.dir}")
    return run


class WandbRun:
    """An open W&B run."""

    def __init__(self, settings: TrackerSettings, *, mode: Mode, run_id: str, config: Mapping[str, Any]) -> None:
        """Open the run. Raises what `wandb.init` raises."""
        import wandb

        library = wandb.setup(_library_settings(settings))
        # Private, so used only when present: the handle that ends a wandb-core that hangs.
        process = getattr(getattr(library, "_connection", None), "_proc", None)
        self._core = getattr(process, "_process", None)
        self._settings = settings
        self._run: Any = wandb.init(settings=_run_settings(settings, mode=mode, run_id=run_id), config=dict(config))
        self.mode: Mode = mode
        self.id: str = self._run.id
        self.url: str | None = self._run.url
        self.dir: str = os.path.relpath(Path(self._run.dir).parent, settings.dir)
        # The summary is that of run.json; without "none" W&B would add the last row to it.
        has_windows = settings.window_s is not None
        axis, sections = (WINDOW_AXIS, WINDOW_SECTIONS) if has_windows else (AXIS, SECTIONS)
        self._run.define_metric(axis, summary="none")
        for section in sections:
            self._run.define_metric(f"{section}/*", step_metric=axis, step_sync=False, summary="none")

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row. Raises what wandb raises once wandb-core is gone."""
        self._run.log({key: as_wandb(value) for key, value in row.items()})

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Add to the run's config."""
        self._run.config.update(dict(config), allow_val_change=True)

    def finish(self, summary: Mapping[str, Any], *, table: tuple[list[Any], list[Any]], exit_code: int) -> str | None:
        """Write summary and table and end the run, in at most about twice `finish_timeout_s`.

        Returns problems that did not prevent this, as text for the user.
        """
        self._run.summary.update(dict(summary))
        problems = self._log_table(*table)
        try:
            self._run.finish(exit_code)
        except TimeoutError:
            late = f"the upload was not done after {self._settings.finish_timeout_s:g} s"
            problems.append(f"{late}. Upload the rest with: wandb sync {self._settings.dir / self.dir}")
        finally:
            _teardown()
        return "; ".join(problems) or None

    def kill(self) -> None:
        """End wandb-core, so that a call that waits for it returns."""
        if self._core is not None:
            self._core.kill()

    def abandon(self, error: Exception) -> str:
        """End wandb-core and leave wandb, with its atexit hook. Returns what `error` means, as text for the user."""
        status = None
        if self._core is not None:
            # The connection breaks a little before the process has ended.
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._core.wait(timeout=1.0)
        self.kill()
        _teardown()
        return first_line(error) if status is None else f"wandb-core ended with status {status}"

    def attach(self, attachment: Attachment) -> str | None:
        """Log a table, a bar chart of it and an artifact of files, in at most half of `finish_timeout_s`.

        Returns what went wrong, as text for the user.
        """
        import wandb

        name, files = attachment.name, [Path(path) for path in attachment.files]

        def log() -> None:
            table = wandb.Table(columns=list(attachment.columns), data=list(attachment.rows))
            label, value, title = attachment.chart
            self._run.log({name: table, f"{name}_chart": wandb.plot.bar(table, label, value, title=title)})
            artifact = wandb.Artifact(f"{name}-{self.id}", type="profile")
            for path in files:
                artifact.add_file(str(path))
            if files:
                self._run.log_artifact(artifact)

        problem = self._try(log)
        return None if problem is None else f"{name} was not logged ({problem}); it is in {self._settings.dir}"

    def _log_table(self, columns: list[Any], rows: list[Any]) -> list[str]:
        """Log the worst samples. Returns the problem, if there was one."""
        if not rows:
            return []
        import wandb

        def log() -> None:
            cells = [[as_wandb(cell) for cell in row] for row in rows]
            self._run.log({"worst_samples": wandb.Table(columns=columns, data=cells)})

        problem = self._try(log)
        return [] if problem is None else [f"the table of the worst samples was not logged ({problem})"]

    def _try(self, log: Callable[[], None]) -> str | None:
        """Call `log` on a thread, as wandb waits for a server without a time limit. Returns what went wrong."""
        problems: list[str] = []

        def work() -> None:
            try:
                log()
            except Exception as error:  # a table must not end the run
                problems.append(first_line(error))

        thread = threading.Thread(target=work, name="mlotel-wandb-table", daemon=True)
        thread.start()
        thread.join(timeout=self._settings.finish_timeout_s / 2)
        if thread.is_alive():
            return "the server did not answer"
        return problems[0] if problems else None


def as_wandb(cell: Any) -> Any:
    """Return a value as W&B takes it: PNG bytes become an image, Bins a histogram."""
    if isinstance(cell, Bins):
        import numpy as np
        import wandb

        return wandb.Histogram(np_histogram=(np.asarray(cell.counts), np.asarray(cell.edges)))
    if not isinstance(cell, bytes):
        return cell
    import io

    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(cell)))


def mode_of_environment() -> str | None:
    """Return the mode that WANDB_MODE asks for, by the names used here; None when it is unset or not a mode."""
    modes = {"dryrun": "offline", "run": "online", "shared": "online"}
    mode = os.environ.get("WANDB_MODE", "").lower()
    mode = modes.get(mode, mode)
    return mode if mode in ("online", "offline", "disabled") else None


def _choose_mode(settings: TrackerSettings) -> tuple[Mode, str, str]:
    """Return the mode, the W&B host, and why the mode is not online; empty when offline was asked for."""
    import wandb

    mode = settings.mode
    if mode == "auto":
        mode = mode_of_environment() or "auto"
    if mode == "offline":
        return "offline", "", ""
    host = wandb.setup(_library_settings(settings)).settings.base_url
    reason = _missing_credentials(host)
    if reason and mode == "online":
        reason = f"{reason}, although online was asked for (`wandb login` stores a key)"
    return ("offline" if reason else "online"), host, reason


def _missing_credentials(host: str) -> str:
    """Return why there is no usable key for `host`; empty when there is one. It uses neither prompt nor network."""
    from wandb.sdk.lib import wbauth

    try:
        found = wbauth.authenticate_session(host=host, source="mlotel", prompt=False, update_session=False)
    except Exception as error:  # a malformed key, or a wandb that moved this function
        return f"no usable API key for {host} ({first_line(error)})"
    return "" if found else f"no API key for {host}"


def _own_environment(run_dir: Path) -> None:
    """Set the variables that wandb reads from the environment only; this process owns its environment."""
    files = run_dir.absolute() / "wandb"
    # wandb has no setting for these two: staged artifacts and logs of wandb-core would go to the home folder.
    os.environ["WANDB_DATA_DIR"] = str(files)
    os.environ["WANDB_CACHE_DIR"] = str(files / "cache")
    # It has none for its own error reports either, which open connections of their own.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # A workload that uses wandb itself passes its wandb-core on, which ends with the workload.
    os.environ.pop("WANDB_SERVICE", None)


def _library_settings(settings: TrackerSettings) -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        quiet=True,
        root_dir=str(settings.dir.absolute()),
        console="off",
        x_disable_viewer=True,
    )


def _run_settings(settings: TrackerSettings, *, mode: Mode, run_id: str) -> Any:
    import wandb

    values: dict[str, Any] = {
        "mode": mode,
        "run_id": run_id,
        "project": settings.project,
        "run_name": settings.name,
        "run_job_type": settings.job_type,
        "run_tags": tuple(settings.tags),
        "use_dot_wandb": False,
        "reinit": "create_new",
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "label_disable": True,
        "x_save_requirements": False,
        "x_disable_stats": not settings.system_metrics,
        "x_stats_pid": os.getppid(),
        "x_transaction_log_flush_interval": FLUSH_INTERVAL_S,
        "finish_timeout": settings.finish_timeout_s,
        "finish_timeout_raises": True,
        # The stop button in W&B would interrupt this process instead of the workload.
        "stop_fn": lambda: None,
    }
    if mode == "online":
        values["init_timeout"] = settings.init_timeout_s
        if settings.resume_id is not None:
            values["resume"] = "allow"
    optional = {"entity": settings.entity, "run_group": settings.group, "run_notes": settings.notes}
    values |= {key: value for key, value in optional.items() if value is not None}
    return wandb.Settings(**values)


def _teardown() -> None:
    """Leave wandb, its atexit hook included. wandb may raise or exit here when wandb-core is gone."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type without a message."""
    return (str(error) or type(error).__name__).splitlines()[0]
