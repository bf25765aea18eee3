"""How a run begins: its directory, its identity, and what its recorder is told first.

A configured run opens with `open_run`; a program's own loop or SDK provider with `create_opening`.
"""

import contextlib
import hashlib
import itertools
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli.config.otlp_settings import resource_of_environment
from mlotel_cli.config.policies import TrackerMode, TrackerOptions
from mlotel_cli.errors import UsageError
from mlotel_cli.hardware import accelerator, environment
from mlotel_cli.store.claim import holds_run
from mlotel_cli.telemetry.device import CudaEvents, DeviceTimer
from mlotel_cli.wire import MonitorOptions, Opening, OtlpOptions

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mlotel_cli.config.schema import Job
    from mlotel_cli.modes.run import Session


def open_run(
    session: "Session", cfg: "DictConfig", job: "Job", *, mode: str, backend: str, monitor: MonitorOptions | None = None
) -> None:
    """Open the session of a run as `cfg` describes it; imports torch, for the environment. `monitor` is Opening's."""
    from mlotel_cli.config.check import plain

    settings, machine = plain(cfg), environment(with_torch=True)
    tracker = TrackerOptions(**settings["tracker"])
    tracker.group = tracker.group or job.sweep
    opening = create_opening(mode=mode, name=cfg.run.name, config=settings, tracker=tracker, machine=machine)
    has_device = cfg.device.startswith("cuda") and backend == "otel"
    session.open(
        replace(
            opening,
            overrides=job.overrides,
            settle_s=cfg.telemetry.settle_s,
            part_s=cfg.telemetry.part_s,
            max_names=cfg.telemetry.max_names,
            otlp=OtlpOptions(**settings["telemetry"]["otlp"]),
            monitor=monitor,
        ),
        backend=backend,
        strict=cfg.telemetry.strict,
        flush_ms=cfg.telemetry.flush_ms,
        device=DeviceTimer(CudaEvents(cfg.device)) if has_device else None,
    )
    session.tell({"environment": machine, "device": cfg.device})


def create_opening(
    *, mode: str, name: str, config: dict[str, Any], tracker: TrackerOptions, machine: Mapping[str, Any]
) -> Opening:
    """Describe a run that starts now, with an identity of its own; `machine` is `hardware.environment()`."""
    run_id = new_run_id()
    return Opening(
        mode=mode,
        name=name,
        run_id=run_id,
        started_ns=time.time_ns(),
        config=config,
        identity=identify(config, run_id=run_id, name=name, git=machine["git"]),
        tracker=tracker,
    )


def identify(config: Mapping[str, Any], *, run_id: str, name: str, git: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the attributes that W&B's config and OTel's resource share: they connect a run's row, trace and alert."""
    text = json.dumps(config, sort_keys=True, default=str)
    service = os.environ.get("OTEL_SERVICE_NAME") or resource_of_environment(os.environ).get("service.name")
    return {
        "service.name": service or name,
        "service.instance.id": str(uuid.uuid4()),
        "mlotel.run.id": run_id,
        "git.commit": git["commit"] if git else None,
        "config.hash": hashlib.sha256(text.encode()).hexdigest()[:16],
    }


def new_run_id() -> str:
    """Return a new `mlotel.run.id`."""
    return uuid.uuid4().hex[:16]


def recorder_imports(tracker_mode: str) -> tuple[str, ...]:
    """Return the packages that the recorder imports at once; wandb only for a run that uses it."""
    return ("polars",) if tracker_mode == "disabled" else ("polars", "wandb")


# -- runs of a program's own ------------------------------------------------------------------------------------------


def check_directory(directory: str | Path | None) -> None:
    """Raise UsageError when `directory` holds a run already."""
    if directory and holds_run(Path(directory)):
        raise UsageError(f"directory={directory}: it holds a run already; give another one")


def make_directory(directory: str | Path | None) -> Path:
    """Make the run directory; without one, outputs/loop/<date>_<time>.

    Raises:
        UsageError: when it holds a run already, or cannot be made.
    """
    check_directory(directory)
    try:
        folder = Path(directory) if directory else _new_directory()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"directory={directory or 'outputs/loop'}: cannot be written: {error}") from error
    return folder


def _new_directory() -> Path:
    """Make outputs/loop/<date>_<time>; a run that begins in the same second gets a number behind it."""
    first = Path("outputs", "loop", f"{datetime.now().astimezone():%Y-%m-%d_%H-%M-%S}")
    first.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            folder = first if number == 1 else first.with_name(f"{first.name}_{number}")
            folder.mkdir()
            return folder
    raise AssertionError("unreachable")


def changed_environment(machine: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what to add to run.json if the program began to use a GPU after the run was opened on `machine`."""
    try:
        now = {**machine, **accelerator()}
    except RuntimeError:  # CUDA failed, and the program knows already
        return None
    return {"environment": now} if now != machine else None


def tracker_options(*, project: str, entity: str | None, group: str | None, mode: str) -> TrackerOptions:
    """Return the options of the tracker that a program can choose.

    Raises:
        UsageError: when `mode` is none of W&B's.
    """
    if mode not in [*TrackerMode]:
        raise UsageError(f"mode={mode!r}: allowed are {', '.join(TrackerMode)}")
    return TrackerOptions(mode=mode, project=project, entity=entity, group=group)
