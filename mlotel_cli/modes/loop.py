"""`mlotel_cli.start_run`: rows for a program that owns its loop and has no OpenTelemetry SDK of its own."""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlotel_cli.errors import UsageError
from mlotel_cli.hardware import environment
from mlotel_cli.link.handoff import Opening
from mlotel_cli.modes.results import print_results, sayer, stderr
from mlotel_cli.modes.run import Session, identify, new_run_id
from mlotel_cli.modes.sdk import new_directory, tracker_settings
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

    Prints the closing table. Call it from the main thread for Ctrl-C and SIGTERM to end the run in order.

    Args:
        name: of the run.
        directory: run directory; default outputs/loop/<date>_<time>. Must not hold a run already.
        config: what W&B shows as the run's configuration, JSON-able.
        project: W&B project.
        entity: W&B team or user.
        group: W&B group.
        mode: auto | online | offline | disabled, for W&B.

    Yields:
        The run directory.

    Raises:
        UsageError: when the directory holds a run already or cannot be made, `mode` is none of those, or the program
            has an OpenTelemetry provider of its own.
        RecorderError: when the recorder cannot be started, or died.
    """
    tracker = tracker_settings(project=project, entity=entity, group=group, mode=mode)
    if directory and Path(directory, "run.json").exists():
        raise UsageError(f"directory={directory}: it holds a run already; give another one")
    if not api.install():
        raise UsageError(
            "start_run: this program has an OpenTelemetry provider of its own; "
            "add one line instead: provider.add_span_processor(mlotel_cli.MlotelSpanProcessor())"
        )
    try:
        folder = Path(directory) if directory else new_directory()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"directory={directory or 'outputs/loop'}: cannot be written: {error}") from error
    say = sayer(stderr())
    imports = ("polars",) if mode == "disabled" else ("polars", "wandb")
    session = Session(folder, say=say, imports=imports)
    machine, run_id, given = environment(), new_run_id(), dict(config or {})
    opening = Opening(
        mode="loop",
        name=name,
        run_id=run_id,
        started_ns=time.time_ns(),
        config=given,
        identity=identify(given, run_id=run_id, name=name, git=machine["git"]),
        tracker=tracker,
        settle_roots=True,
    )
    try:
        with session:
            session.open(opening, backend="otel", strict=False, flush_ms=50)
            session.tell({"environment": machine})
            session.record()
            started = time.perf_counter()
            api.call_before_batches(session.link.wait_for_room)
            try:
                yield folder
            finally:
                api.call_before_batches(None)
                session.closing.wall_s = time.perf_counter() - started
    finally:
        if session.info is not None:
            print_results(session.info, folder)
