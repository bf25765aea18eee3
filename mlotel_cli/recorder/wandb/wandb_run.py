"""One W&B run of the recorder process: decides online or offline, opens it, and ends it in bounded time.

It knows the wandb library and nothing of batches. Everything here runs on the sink's own thread, in a process that
owns its environment; wandb is imported inside. Never a prompt: credentials are looked up before wandb would ask.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from mlotel_cli.recorder.wandb.wandb_rows import AXIS, SECTIONS
from mlotel_cli.recorder.wandb.wandb_windows import WINDOW_AXIS, WINDOW_SECTIONS, Bins

Mode = Literal["online", "offline"]
FLUSH_INTERVAL_S = 1.0
"""What a crash of the recorder can cost in the local file: the rows of this long."""


@dataclass(slots=True)
class TrackerSettings:
    """How a run appears in W&B and how long it may take.

    Attributes:
        mode: auto | online | offline | disabled. auto obeys WANDB_MODE; without it, it is online when a key is
            configured for the W&B host and offline otherwise.
        project: W&B project.
        entity: W&B user or team; None leaves it to WANDB_ENTITY or the account's default.
        name: the run's name.
        group: what the runs of a sweep share.
        job_type: the mlotel command.
        tags: W&B tags.
        notes: free text about the run.
        dir: the run directory; every file of W&B lies below its `wandb` folder.
        init_timeout_s: how long the server may take to accept the run before the run goes offline.
        finish_timeout_s: how long the upload may take at the end.
        rows_per_minute: online, faster rows are merged into windows.
        max_queued_rows: rows that may wait for W&B before `write` blocks.
        write_timeout_s: how long `write` may block before rows are dropped.
        system_metrics: let W&B sample CPU, memory and GPU every 15 s.
        workload_pid: the process that those are about; None is the parent of this one.
        window_s: a monitor's: seconds that one row sums up; None is one row a batch.
        started_s: start of the run, seconds since the epoch; windows count from it.
        resume_id: the run that a recorder before this one logged to, to go on with it.
    """

    mode: str
    project: str
    entity: str | None
    name: str
    group: str | None
    job_type: str
    dir: Path
    tags: list[str] = field(default_factory=list[str])
    notes: str | None = None
    init_timeout_s: float = 5.0
    finish_timeout_s: float = 30.0
    rows_per_minute: float = 1000.0
    max_queued_rows: int = 20_000
    write_timeout_s: float = 10.0
    system_metrics: bool = True
    workload_pid: int | None = None
    window_s: float | None = None
    started_s: float = 0.0
    resume_id: str | None = None


class TrackerRun(Protocol):
    """What the sink needs of an open run."""

    mode: Mode
    id: str
    url: str | None
    dir: str

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row. Raises whatever wandb raises once wandb-core is gone."""
        ...

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Add to the run's config."""
        ...

    def attach(self, attachment: Mapping[str, Any]) -> str | None:
        """Log what a profile has beside its rows.

        Args:
            attachment: `name`; `columns` and `rows` of a table; `chart`, its columns of labels and values, and a
                title; `files`, paths of an artifact.

        Returns:
            What went wrong, in words.
        """
        ...

    def finish(self, summary: Mapping[str, Any], *, table: tuple[list[Any], list[Any]], exit_code: int) -> str | None:
        """Write summary and table and end the run. Returns what went wrong without ending it, in words."""
        ...

    def kill(self) -> None:
        """Make a call that hangs in another thread return, by an error."""
        ...

    def abandon(self, error: Exception) -> str:
        """Leave a run that cannot be finished. Returns what `error` means, in words."""
        ...


def open_run(settings: TrackerSettings, *, config: Mapping[str, Any], say: Callable[[str], None]) -> "WandbRun":
    """Open the run that `settings.mode` asks for, offline when that cannot be had online.

    Imports wandb (about a second) and starts wandb-core. Without a server it takes `init_timeout_s` more.
    """
    _own_environment(settings.dir)

    run_id = settings.resume_id or secrets.token_hex(6)
    mode, host, reason = _choose_mode(settings)
    if mode == "online":
        try:
            run = WandbRun(settings, mode="online", run_id=run_id, config=config)
        except Exception as error:  # the library raises many kinds here, and each of them means: not online
            _teardown()
            for leftover in (settings.dir / "wandb").glob(f"run-*-{run_id}"):
                shutil.rmtree(leftover, ignore_errors=True)
            reason = f"{host} did not accept the run ({first_line(error)})"
        else:
            say(f"W&B: {run.url}")
            return run
    if settings.resume_id is not None:
        # W&B resumes on the server only; a second offline run of the same id would replace the first when synced.
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
    """An open W&B run. See `TrackerRun`."""

    def __init__(self, settings: TrackerSettings, *, mode: Mode, run_id: str, config: Mapping[str, Any]) -> None:
        """Open it. Raises what `wandb.init` raises."""
        import wandb

        library = wandb.setup(_library_settings(settings))
        # Private, so only used when it is there: the handle by which a wandb-core that hangs can be ended.
        process = getattr(getattr(library, "_connection", None), "_proc", None)
        self._core = getattr(process, "_process", None)
        self._settings = settings
        self._run: Any = wandb.init(settings=_run_settings(settings, mode=mode, run_id=run_id), config=dict(config))
        self.mode: Mode = mode
        self.id: str = self._run.id
        self.url: str | None = self._run.url
        self.dir: str = os.path.relpath(Path(self._run.dir).parent, settings.dir)
        # The summary is run.json's; without "none" W&B would put the last batch beside it.
        is_live = settings.window_s is not None
        axis, sections = (WINDOW_AXIS, WINDOW_SECTIONS) if is_live else (AXIS, SECTIONS)
        self._run.define_metric(axis, summary="none")
        for section in sections:
            self._run.define_metric(f"{section}/*", step_metric=axis, step_sync=False, summary="none")

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row."""
        self._run.log({key: as_wandb(value) for key, value in row.items()})

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Add to the run's config."""
        self._run.config.update(dict(config), allow_val_change=True)

    def finish(self, summary: Mapping[str, Any], *, table: tuple[list[Any], list[Any]], exit_code: int) -> str | None:
        """Write summary and table and end the run, in about twice `finish_timeout_s` at worst."""
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
        """End wandb-core and leave wandb, its atexit hook included. Returns what `error` means, in words."""
        status = None
        if self._core is not None:
            # A connection breaks a little before the process that held it can be waited for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._core.wait(timeout=1.0)
        self.kill()
        _teardown()
        return first_line(error) if status is None else f"wandb-core ended with status {status}"

    def attach(self, attachment: Mapping[str, Any]) -> str | None:
        """Log a table with a bar chart of it, and an artifact of files; bounded like the table of the worst samples."""
        import wandb

        problems: list[str] = []
        name, files = str(attachment["name"]), [Path(path) for path in attachment["files"]]

        def log() -> None:
            try:
                table = wandb.Table(columns=list(attachment["columns"]), data=list(attachment["rows"]))
                label, value, title = attachment["chart"]
                self._run.log({name: table, f"{name}_chart": wandb.plot.bar(table, label, value, title=title)})
                artifact = wandb.Artifact(f"{name}-{self.id}", type="profile")
                for path in files:
                    artifact.add_file(str(path))
                if files:
                    self._run.log_artifact(artifact)
            except Exception as error:  # neither is worth the run
                problems.append(first_line(error))

        thread = threading.Thread(target=log, name="mlotel-wandb-attach", daemon=True)
        thread.start()
        thread.join(timeout=self._settings.finish_timeout_s / 2)
        if thread.is_alive():
            problems.append("the server did not answer")
        return f"{name} was not logged ({'; '.join(problems)}); it is in {self._settings.dir}" if problems else None

    def _log_table(self, columns: list[Any], rows: list[Any]) -> list[str]:
        """Log the worst samples. Online, wandb asks the server first, without a time limit: so it has one here."""
        if not rows:
            return []
        import wandb

        problems: list[str] = []

        def log() -> None:
            try:
                cells = [[as_wandb(cell) for cell in row] for row in rows]
                self._run.log({"worst_samples": wandb.Table(columns=columns, data=cells)})
            except Exception as error:  # a table is not worth the run
                problems.append(first_line(error))

        thread = threading.Thread(target=log, name="mlotel-wandb-table", daemon=True)
        thread.start()
        thread.join(timeout=self._settings.finish_timeout_s / 2)
        if thread.is_alive():
            problems.append("the server did not answer")
        return [f"the table of the worst samples was not logged ({problem})" for problem in problems]


def as_wandb(cell: Any) -> Any:
    """A value as W&B takes it: PNG bytes become an image, Bins a histogram."""
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


def earlier_run_id(run_dir: Path) -> str | None:
    """The W&B run that a recorder before this one logged to, by its run.json; None when there was none."""
    try:
        run_id = json.loads((run_dir / "run.json").read_text())["wandb"]["id"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return run_id if isinstance(run_id, str) else None


def mode_of_environment() -> str | None:
    """What WANDB_MODE asks for, in this module's words; None when it is unset or no mode."""
    modes = {"dryrun": "offline", "run": "online", "shared": "online"}
    mode = os.environ.get("WANDB_MODE", "").lower()
    mode = modes.get(mode, mode)
    return mode if mode in ("online", "offline", "disabled") else None


def _choose_mode(settings: TrackerSettings) -> tuple[Mode, str, str]:
    """Mode, W&B host, and why it is not online although it could have been wanted."""
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
    """Why there is no usable key for `host`; empty when there is one. No prompt, no network."""
    from wandb.sdk.lib import wbauth

    try:
        found = wbauth.authenticate_session(host=host, source="mlotel", prompt=False, update_session=False)
    except Exception as error:  # a malformed key, or a wandb that moved this function
        return f"no usable API key for {host} ({first_line(error)})"
    return "" if found else f"no API key for {host}"


def _own_environment(run_dir: Path) -> None:
    """Set what wandb reads from the environment only; this process owns it."""
    files = run_dir.absolute() / "wandb"
    # No setting for these two: staged artifacts and wandb-core's logs would go below the home folder.
    os.environ["WANDB_DATA_DIR"] = str(files)
    os.environ["WANDB_CACHE_DIR"] = str(files / "cache")
    # No setting either: wandb's reports about itself, which open connections of their own.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # A workload that uses wandb itself hands its wandb-core down, and that one dies with the workload.
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
        "x_stats_pid": settings.workload_pid or os.getppid(),
        "x_transaction_log_flush_interval": FLUSH_INTERVAL_S,
        "finish_timeout": settings.finish_timeout_s,
        "finish_timeout_raises": True,
        # The stop button in W&B would interrupt this process, which is not the one that works.
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
    """Leave wandb, its atexit hook included. It may raise, or exit, when wandb-core is gone already."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
