"""Runs a mode under Hydra: search path, single run or sweep, and the exit code of the command.

The folder of --config-dir is Hydra's primary path and the built-in conf is searched behind it, so a user's file wins.
A small root configuration wraps the chosen one: it brings the schema, and it puts the experiment last, so that an
experiment wins over the user's file as well. What a mode does is not known here.
"""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir, main
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from mlotel_cli.config import EvalConfig, Job, check, resolve_device
from mlotel_cli.config_errors import CONFIG_EXCEPTIONS, did_you_mean, listed, readable
from mlotel_cli.errors import MlotelError, UsageError

log = logging.getLogger(__name__)

JOB_FILE = "job.json"
"""In the directory of each job of a sweep: how it ended, also when it ended before its run.json existed."""
VERSION_BASE = "1.3"
INTERRUPTED = 130


@dataclass(slots=True, frozen=True)
class HydraFlags:
    """Hydra's own command-line flags, as the command line parsed them."""

    multirun: bool = False
    cfg: str | None = None
    package: str | None = None
    resolve: bool = False
    info: str | None = None
    config_dir: Path | None = None
    config_name: str | None = None
    debug: bool = False

    def arguments(self) -> list[str]:
        """Return the flags that Hydra itself reads; folder and name are handed to it directly."""
        named = {"--cfg": self.cfg, "--package": self.package, "--info": self.info}
        switches = {"--multirun": self.multirun, "--resolve": self.resolve}
        return [
            *(name for name, on in switches.items() if on),
            *(part for name, value in named.items() if value is not None for part in (name, value)),
        ]


@dataclass(slots=True, frozen=True)
class Mode:
    """A command that runs under Hydra: its schema and the function that does the work."""

    name: str
    schema: type[Any]
    run: Callable[[DictConfig, Job], Any]


@dataclass(slots=True)
class JobStatus:
    """How one job of a sweep ended; the content of job.json."""

    job: int
    overrides: list[str]
    status: Literal["complete", "failed", "refused", "interrupted"]
    exit_code: int
    seconds: float
    error: str = ""


def _evaluate(cfg: DictConfig, job: Job) -> Any:
    from mlotel_cli.modes import evaluate

    return evaluate.run(cfg, job)


MODES = {"eval": Mode("eval", EvalConfig, _evaluate)}


class BuiltinConf(SearchPathPlugin):
    """Searches the conf that mlotel ships behind the user's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the built-in folder, unless it is the primary one already."""
        path = str(builtin_conf())
        if all(entry.path != path for entry in search_path.get_path()):
            search_path.append("mlotel", path)


class SweepWatch(Callback):
    """Remembers the directory of the sweep that this process started; only Hydra can compute it."""

    directory: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra once, before the first job."""
        SweepWatch.directory = Path(str(config.hydra.sweep.dir)).absolute()


@dataclass(slots=True)
class Task:
    """What Hydra calls once per job, in this process or, with another launcher, in a worker.

    A single run keeps its error for `launch` to report: Hydra would print lines of its own about it.
    """

    mode: str
    config_name: str
    error: Exception | None = None

    def __call__(self, cfg: DictConfig) -> None:
        """Check the configuration and run the mode."""
        hydra = HydraConfig.get()
        multirun = hydra.mode == RunMode.MULTIRUN
        job = Job(
            output_dir=Path(hydra.runtime.output_dir),
            overrides=list(hydra.overrides.task),
            sweep=Path(hydra.sweep.dir).name if multirun else None,
            job_num=int(hydra.job.num) if multirun else None,
            config_name=self.config_name,
        )
        if multirun:
            self._run_recorded(cfg, job)
            return
        try:
            self._run(cfg, job)
        except Exception as error:
            self.error = error

    def _run(self, cfg: DictConfig, job: Job) -> None:
        logging.captureWarnings(True)
        try:
            check(cfg)
            resolve_device(cfg)
            cfg.run.dir = str(job.output_dir)
            cfg.run.name = cfg.run.name or HydraConfig.get().runtime.choices.get("pipeline") or self.mode
            MODES[self.mode].run(cfg, job)
        except BaseException as error:
            log.error("the run ended early: %s", error, exc_info=True)
            raise
        finally:
            logging.captureWarnings(False)

    def _run_recorded(self, cfg: DictConfig, job: Job) -> None:
        started = time.monotonic()
        status = JobStatus(job.job_num or 0, job.overrides, "interrupted", INTERRUPTED, 0.0)
        try:
            self._run(cfg, job)
            status.status, status.exit_code = "complete", 0
        except Exception as error:
            status.exit_code, status.error = exit_code(error), message(error)
            status.status = "refused" if status.exit_code == UsageError.exit_code else "failed"
            raise
        finally:
            status.seconds = time.monotonic() - started
            (job.output_dir / JOB_FILE).write_text(json.dumps(asdict(status)))


def launch(mode: str, flags: HydraFlags, overrides: list[str]) -> int:
    """Run a mode as the command line asked for it and return the exit code; errors are printed, not raised."""
    SweepWatch.directory = None
    try:
        with _process_state(flags):
            return _launch(MODES[mode], flags, overrides)
    except KeyboardInterrupt as stop:
        _sweep_table()
        return getattr(stop, "exit_code", INTERRUPTED)
    except Exception as error:
        report(error, debug=flags.debug)
        return exit_code(error)


def builtin_conf() -> Path:
    """Return the conf folder that mlotel ships: beside the package in a wheel, one folder up in a checkout."""
    package = Path(__file__).resolve().parent
    beside = package / "conf"
    return beside if beside.is_dir() else package.parent / "conf"


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error stands for."""
    if isinstance(error, CONFIG_EXCEPTIONS):
        return UsageError.exit_code
    return error.exit_code if isinstance(error, MlotelError) else MlotelError.exit_code


def message(error: BaseException) -> str:
    """Return what the user reads about an error."""
    if isinstance(error, CONFIG_EXCEPTIONS):
        error = readable(error)
    return str(error) if isinstance(error, MlotelError) else f"{type(error).__name__}: {error}"


def report(error: BaseException, *, debug: bool) -> None:
    """Print one short message on stderr, and the traceback with `debug`."""
    if debug:
        traceback.print_exception(error)
    hint = "" if debug or isinstance(error, (MlotelError, *CONFIG_EXCEPTIONS)) else " (--debug shows where)"
    print(f"mlotel: {message(error)}{hint}", file=sys.stderr)


def _launch(mode: Mode, flags: HydraFlags, overrides: list[str]) -> int:
    primary = _primary_folder(flags.config_dir)
    config_name = _config_name(flags.config_name or mode.name, primary=primary)
    root = _register(mode, config_name)
    showing = flags.cfg is not None or flags.info is not None
    sweeping = flags.multirun or any(text.replace(" ", "") == "hydra.mode=MULTIRUN" for text in overrides)
    if sweeping:
        _refuse_run_dir(overrides)
    elif not showing:
        sweeping = _preflight(root, primary=primary, overrides=overrides)
    task = Task(mode.name, config_name)
    try:
        sys.argv = [sys.argv[0], *flags.arguments(), *overrides]
        main(version_base=VERSION_BASE, config_path=str(primary), config_name=root)(task)()
    except SystemExit as ended:
        # Hydra itself only exits for a --package that does not exist; a job's own sys.exit keeps its code.
        return UsageError.exit_code if showing and ended.code else _raise(ended)
    except OSError as error:
        raise UsageError(f"the run directory cannot be written: {error.strerror or error}") from error
    except Exception:
        if not (sweeping and _sweep_jobs()):
            raise
    if sweeping and not showing:
        return _sweep_table()
    if task.error is not None:
        raise task.error
    return 0


def _raise(error: BaseException) -> int:
    raise error


@contextmanager
def _process_state(flags: HydraFlags) -> Iterator[None]:
    """Hold what Hydra and the user's code read from the process, and put it back."""
    argv, path, full_error = sys.argv, list(sys.path), os.environ.get("HYDRA_FULL_ERROR")
    if flags.config_dir is not None:
        sys.path.insert(0, str(flags.config_dir.absolute().parent))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
        _close_log_files()


def _close_log_files() -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def _primary_folder(config_dir: Path | None) -> Path:
    if config_dir is None:
        return builtin_conf()
    folder = config_dir.absolute()
    if not folder.is_dir():
        siblings = sorted(entry.name for entry in folder.parent.glob("*") if entry.is_dir())
        hint = did_you_mean(folder.name, siblings)
        raise UsageError(f"--config-dir {config_dir}: there is no such folder{hint} (folders there: {listed(siblings)})")
    return folder


def _config_name(name: str, *, primary: Path) -> str:
    name = name.removesuffix(".yaml")
    folders = dict.fromkeys((primary, builtin_conf()))
    if not any((folder / f"{name}.yaml").is_file() for folder in folders):
        names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        where = listed(map(str, folders))
        hint = did_you_mean(name, names)
        raise UsageError(f"--config-name {name}: no such file in {where}{hint}; available: {listed(names)}")
    return name


def _register(mode: Mode, config_name: str) -> str:
    """Store the root configuration around `config_name` and return the root's name."""
    Plugins.instance().register(BuiltinConf)
    store, root, schema = ConfigStore.instance(), f"mlotel_{mode.name}", f"{mode.name}_schema"
    store.store(name=schema, node=mode.schema, provider="mlotel")
    watch = {"_target_": f"{SweepWatch.__module__}.{SweepWatch.__qualname__}"}
    defaults = [schema, config_name, "_self_", {"experiment": None}]
    store.store(name=root, node={"defaults": defaults, "hydra": {"callbacks": {"mlotel": watch}}}, provider="mlotel")
    return root


def _refuse_run_dir(overrides: list[str]) -> None:
    for text in overrides:
        if text.lstrip("+").partition("=")[0].strip() in ("run.dir", "hydra.run.dir"):
            raise UsageError(f"{text}: a sweep has one directory per job; use hydra.sweep.dir=FOLDER")


def _preflight(root: str, *, primary: Path, overrides: list[str]) -> bool:
    """Check a single run before Hydra writes anything; return whether the configuration asks for a sweep instead."""
    with initialize_config_dir(str(primary), version_base=VERSION_BASE):
        cfg = compose(root, overrides, return_hydra_config=True)
        if cfg.hydra.mode == RunMode.MULTIRUN:
            return True
        HydraConfig.instance().set_config(cfg)
        try:
            directory = Path(str(cfg.hydra.run.dir)).absolute()
            with open_dict(cfg):
                del cfg["hydra"]
            check(cfg)
        finally:
            HydraConfig.instance().cfg = None
    _check_run_dir(directory)
    return False


def _check_run_dir(directory: Path) -> None:
    if (directory / "run.json").exists():
        raise UsageError(f"run.dir={directory}: holds a run already; name another directory or leave run.dir out")
    existing = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is not writable" if existing.is_dir() else "is not a folder"
        raise UsageError(f"run.dir={directory}: cannot be written: {existing} {reason}")


def _sweep_jobs() -> list[JobStatus]:
    if SweepWatch.directory is None:
        return []
    files = SweepWatch.directory.rglob(JOB_FILE)
    return sorted((JobStatus(**json.loads(file.read_text())) for file in files), key=lambda job: job.job)


def _sweep_table() -> int:
    """Print how each job of the sweep ended; return the sweep's exit code."""
    from rich.console import Console
    from rich.table import Table

    jobs = _sweep_jobs()
    if not jobs:
        return 0
    table = Table("job", "status", "seconds", "overrides", title=f"sweep {SweepWatch.directory}", title_justify="left")
    for job in jobs:
        style = "green" if job.status == "complete" else "red"
        reason = f"\n{job.error}" if job.error else ""
        table.add_row(str(job.job), f"[{style}]{job.status}[/]", f"{job.seconds:.1f}", " ".join(job.overrides) + reason)
    Console().print(table, markup=True)
    codes = {job.exit_code for job in jobs}
    return next(iter(codes)) if len(codes) == 1 else MlotelError.exit_code
