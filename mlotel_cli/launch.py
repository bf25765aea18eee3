"""Runs a mode under Hydra: search path, single run or sweep, and the exit code of the command.

The folder of --config-dir is Hydra's primary path and the built-in conf comes after it, so that a user's file wins. A
small root configuration wraps the chosen one: it adds the schema, and it applies the experiment last, so that an
experiment wins over the user's file too. This module does not know the work of a mode.
"""

import logging
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir, main
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from mlotel_cli.config.check import check, resolve_device
from mlotel_cli.config.conf_folders import builtin_conf
from mlotel_cli.config.config_errors import CONFIG_EXCEPTIONS, did_you_mean, exit_code, listed, message
from mlotel_cli.config.credentials import hide_override
from mlotel_cli.config.saved_config import SavedConfig, secret_keys
from mlotel_cli.config.schema import EvalConfig, Job, MonitorConfig, ProfileConfig
from mlotel_cli.config.sweep import JobStatus, SweepWatch, finished_jobs, print_sweep
from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.hardware import environment_variables
from mlotel_cli.screen import print_error
from mlotel_cli.store.claim import Claim, check_run_dir, refuse_used

log = logging.getLogger(__name__)

VERSION_BASE = "1.3"
INTERRUPTED = 130


@dataclass(slots=True, frozen=True)
class HydraFlags:
    """Hydra's own command-line flags, already parsed."""

    multirun: bool = False
    cfg: str | None = None
    package: str | None = None
    resolve: bool = False
    info: str | None = None
    config_dir: Path | None = None
    config_name: str | None = None
    debug: bool = False

    def arguments(self) -> list[str]:
        """Return the flags that Hydra parses itself; it gets the folder and the name as arguments."""
        named = {"--cfg": self.cfg, "--package": self.package, "--info": self.info}
        switches = {"--multirun": self.multirun, "--resolve": self.resolve}
        self._refuse_conflicts()
        return [
            *(name for name, on in switches.items() if on),
            *(part for name, value in named.items() if value is not None for part in (name, value)),
        ]

    def _refuse_conflicts(self) -> None:
        if self.multirun + (self.cfg is not None) + (self.info is not None) > 1:
            raise UsageError("--multirun, --cfg and --info exclude each other")
        if self.cfg is None and (self.resolve or self.package is not None):
            raise UsageError("--resolve and --package only apply to --cfg; add --cfg job, hydra or all")


@dataclass(slots=True, frozen=True)
class Mode:
    """A command that runs under Hydra: its schema and the function that does the work."""

    name: str
    schema: type[Any]
    run: Callable[[DictConfig, Job], Any]


def _evaluate(cfg: DictConfig, job: Job) -> Any:
    from mlotel_cli.modes import evaluate

    return evaluate.run(cfg, job)


def _profile(cfg: DictConfig, job: Job) -> Any:
    from mlotel_cli.profile import profile_command as profile

    return profile.run(cfg, job)


def _monitor(cfg: DictConfig, job: Job) -> Any:
    from mlotel_cli.modes import monitor

    return monitor.run(cfg, job)


MODES = {
    "eval": Mode("eval", EvalConfig, _evaluate),
    "profile": Mode("profile", ProfileConfig, _profile),
    "monitor": Mode("monitor", MonitorConfig, _monitor),
}


class BuiltinConf(SearchPathPlugin):
    """Makes Hydra search the built-in conf folder after the user's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the built-in folder, unless it is the primary one already."""
        path = str(builtin_conf())
        if all(entry.path != path for entry in search_path.get_path()):
            search_path.append("mlotel", path)


@dataclass(slots=True)
class Task:
    """The function that Hydra calls once per job, in this process or, with another launcher, in a worker.

    After a single run, `error` is what `launch` reports; if it were raised, Hydra would print its own lines about it.
    A job of a sweep writes how it ended into its directory.
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
            overrides=[hide_override(text) for text in hydra.overrides.task],
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
        logging.raiseExceptions = False  # errors of logging on a full disk must not hide the final error
        try:
            check(cfg)
            refuse_used(job.output_dir)
            resolve_device(cfg)
            cfg.run.dir = str(job.output_dir)
            cfg.run.name = cfg.run.name or HydraConfig.get().runtime.choices.get("pipeline") or self.mode
            MODES[self.mode].run(cfg, job)
        except BaseException as error:
            log.exception("the run ended early: %s", message(error))
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
            print_error(error, text=f"job {job.job_num}: {status.error}")
            # On an error Hydra's basic sweeper would skip the later jobs; other sweepers must get the error.
            if not str(HydraConfig.get().sweeper["_target_"]).endswith(".BasicSweeper"):
                raise
        except BaseException as stop:
            status.exit_code = stop_code(stop)
            raise
        finally:
            status.seconds = time.monotonic() - started
            status.write(job.output_dir)


def launch(mode: str, flags: HydraFlags, overrides: list[str]) -> int:
    """Run a mode by flags and overrides, and return the exit code. Errors are printed, not raised."""
    SweepWatch.directory = None
    try:
        with _process_state(flags), Claim.releasing():
            return _launch(MODES[mode], flags, overrides)
    except KeyboardInterrupt as stop:
        print_sweep()
        return stop_code(stop)
    except Exception as error:
        report(error, debug=flags.debug)
        return exit_code(error)


def stop_code(stop: BaseException) -> int:
    """Return the exit code of a signal or a sys.exit: its own, else that of Ctrl-C."""
    code = getattr(stop, "exit_code", None) or getattr(stop, "code", None)
    return code if isinstance(code, int) else INTERRUPTED


def report(error: BaseException, *, debug: bool) -> None:
    """Print one short message on stderr, and the traceback with `debug`."""
    hint = "" if debug or isinstance(error, (MlotelError, *CONFIG_EXCEPTIONS)) else " (--debug shows where)"
    print_error(error, text=f"{message(error)}{hint}", debug=debug)


def _launch(mode: Mode, flags: HydraFlags, overrides: list[str]) -> int:
    primary = _primary_folder(flags.config_dir)
    config_name = _config_name(flags.config_name or mode.name, primary=primary)
    root = register(mode, config_name, overrides=overrides)
    arguments = flags.arguments()
    showing = flags.cfg is not None or flags.info is not None
    sweeping = flags.multirun or any(text.replace(" ", "") == "hydra.mode=MULTIRUN" for text in overrides)
    if sweeping and mode.name == "monitor":
        raise UsageError("--multirun: a monitor runs until it is stopped, so it cannot be swept; use mlotel eval -m")
    if sweeping:
        _refuse_run_dir(overrides)
    elif not showing:
        sweeping = _preflight(root, primary=primary, overrides=overrides)
    task = Task(mode.name, config_name)
    sys.argv = [sys.argv[0], *arguments, *overrides]
    try:
        main(version_base=VERSION_BASE, config_path=str(primary), config_name=root)(task)()
    except SystemExit as ended:
        # Hydra itself only exits for an unknown --package; a job's own sys.exit keeps its code.
        if not (showing and ended.code):
            raise
        return UsageError.exit_code
    except Exception as error:
        # A sweeper may raise the error of its first failed job; the table shows those of all jobs.
        if not (sweeping and any(job.exit_code for job in finished_jobs())):
            _explain(error)
            raise
    if sweeping and not showing:
        return print_sweep()
    if task.error is not None:
        raise task.error
    return 0


def _explain(error: Exception) -> None:
    """Raise a clearer error in place of one of Hydra's own, where possible. It never gets errors of a single job."""
    if isinstance(error, (MlotelError, *CONFIG_EXCEPTIONS)):
        return
    if isinstance(error, OSError):
        raise UsageError(f"run.dir: it cannot be written: {error}") from error
    if isinstance(error, ValueError):
        raise UsageError(str(error)) from error


@contextmanager
def _process_state(flags: HydraFlags) -> Generator[None]:
    """Set up sys.path and the environment for Hydra and user code; restore them, sys.argv and logging at the end."""
    argv, path = sys.argv, list(sys.path)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    if flags.config_dir is not None:
        sys.path.insert(0, str(flags.config_dir.absolute().parent))
    try:
        with environment_variables(HYDRA_FULL_ERROR="1"):
            yield
    finally:
        sys.argv, sys.path[:] = argv, path
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def _primary_folder(config_dir: Path | None) -> Path:
    if config_dir is None:
        return builtin_conf()
    folder = config_dir.absolute()
    if not folder.is_dir():
        there = sorted(entry.name for entry in folder.parent.glob("*") if entry.is_dir())
        hint = did_you_mean(folder.name, there)
        raise UsageError(f"--config-dir {config_dir}: there is no such folder{hint} (folders there: {listed(there)})")
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


def register(mode: Mode, config_name: str, *, overrides: Sequence[str] = ()) -> str:
    """Store the root configuration that wraps `config_name`; return the root's name."""
    Plugins.instance().register(BuiltinConf)
    store, root, schema = ConfigStore.instance(), f"mlotel_{mode.name}", f"{mode.name}_schema"
    store.store(name=schema, node=_with_open_names(mode.schema), provider="mlotel")
    callbacks = {
        kind.__name__: {"_target_": f"{kind.__module__}.{kind.__qualname__}"} for kind in (SweepWatch, SavedConfig)
    }
    hydra: dict[str, Any] = {"callbacks": callbacks}
    if secret := secret_keys(overrides):
        hydra["job"] = {"config": {"override_dirname": {"exclude_keys": secret}}}
    defaults = [schema, config_name, "_self_", {"experiment": None}]
    store.store(name=root, node={"defaults": defaults, "hydra": hydra}, provider="mlotel")
    return root


def _with_open_names(schema: Any) -> DictConfig:
    """Return the schema with open mappings where the user names the keys, which then need no plus sign."""
    node = OmegaConf.structured(schema)
    for names in (node.executor.replicas, node.telemetry.otlp.headers):
        OmegaConf.set_struct(names, False)
    return node


def _refuse_run_dir(overrides: list[str]) -> None:
    for text in overrides:
        if text.lstrip("+").partition("=")[0].strip() in ("run.dir", "hydra.run.dir"):
            raise UsageError(f"{text}: a sweep has one directory per job; use hydra.sweep.dir=FOLDER")


def _preflight(root: str, *, primary: Path, overrides: list[str]) -> bool:
    """Check a single run before Hydra writes anything; return True when the configuration asks for a sweep instead."""
    with initialize_config_dir(str(primary), version_base=VERSION_BASE):
        try:
            cfg = compose(root, overrides, return_hydra_config=True)
        except Exception as error:
            _explain(error)
            raise
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
    check_run_dir(directory)
    Claim.take(directory)
    return False
