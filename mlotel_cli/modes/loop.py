"""`mlotel_cli.start_run`: records a program that has its own loop and no OpenTelemetry SDK provider."""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlotel_cli.errors import UsageError
from mlotel_cli.hardware import environment
from mlotel_cli.modes.opening import (
    changed_environment,
    check_directory,
    create_opening,
    make_directory,
    recorder_imports,
    tracker_options,
)
from mlotel_cli.modes.run import Session, reporting
from mlotel_cli.screen import sayer, stderr
from mlotel_cli.telemetry import api


@contextmanager
def start_run(
    name: str = "loop",
    *,
    directory: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    project: str = "mlotel",
    entity: str | None = None,
    group: str | None = None,
    mode: str = "auto",
) -> Generator[Path]:
    """Record the batches of your own loop: each `mlotel_cli.batch` inside the `with` block becomes a row.

        with mlotel_cli.start_run("my-loop"):
            for index, images in enumerate(loader):
                with mlotel_cli.batch(index, size=len(images)):
                    with mlotel_cli.span("detector"):
                        boxes = detector(images)
                    mlotel_cli.score("recall", recall(boxes))

    Gives the run directory, and prints the closing table. Call it from the main thread for Ctrl-C and SIGTERM to end
    the run in order.

    Args:
        name: of the run.
        directory: run directory; default outputs/loop/<date>_<time>. Must not hold a run already.
        config: what W&B shows as the run's configuration, JSON-able.
        project: W&B project.
        entity: W&B team or user.
        group: W&B group.
        mode: auto | online | offline | disabled, for W&B.

    Raises:
        UsageError: the directory holds a run or cannot be made, `mode` is unknown, or the program has a provider.
        RecorderError: when the recorder cannot be started, or died.
    """
    tracker = tracker_options(project=project, entity=entity, group=group, mode=mode)
    check_directory(directory)
    if not api.install():
        raise UsageError(
            "start_run: this program has an OpenTelemetry provider of its own; "
            "add one line instead: provider.add_span_processor(mlotel_cli.MlotelSpanProcessor())"
        )
    folder, machine = make_directory(directory), environment()
    opening = create_opening(mode="loop", name=name, config=dict(config or {}), tracker=tracker, machine=machine)
    session = Session(folder, say=sayer(stderr()), imports=recorder_imports(mode))
    with reporting(session):
        session.open(replace(opening, settle_roots=True), backend="otel", strict=False, flush_ms=50)
        session.tell({"environment": machine})
        session.record()
        with _batches_of(session, machine):
            yield folder


@contextmanager
def _batches_of(session: Session, machine: Mapping[str, Any]) -> Generator[None]:
    """Hold the program's batches back while the recorder is far behind; note how long they took, and on which GPU."""
    started = time.perf_counter()
    api.call_before_batches(session.wait_for_room)
    try:
        yield
    finally:
        api.call_before_batches(None)
        session.closing.wall_s = time.perf_counter() - started
        if (more := changed_environment(machine)) is not None:
            session.tell(more)
