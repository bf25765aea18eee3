"""run.json says what a run is and how it went. It is whole at every moment; a new recorder continues an old one's."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mlotel_cli.errors import RecorderError, UsageError
from mlotel_cli.records import COUNTED, BatchRecord
from mlotel_cli.snapshot import SinkHealth
from mlotel_cli.store.layout import RUN_JSON
from mlotel_cli.store.writing import replacing
from mlotel_cli.summary import OtlpCounts, SenderCounts
from mlotel_cli.wire import Opening

Sink = TypeVar("Sink", SinkHealth, SenderCounts, OtlpCounts)

SCHEMA_VERSION = 1
"""What this mlotel writes, and the highest that it reads."""
_OF_EACH_RECORDER = ("status", "ended_ns", "recorder_pid", "wandb", "summary")


def read_info(run_dir: Path) -> dict[str, Any]:
    """Return the content of run.json.

    Raises:
        OSError: when it is not there or cannot be read.
        ValueError: when it is no JSON object.
    """
    info: Any = json.loads((run_dir / RUN_JSON).read_text())
    if type(info) is not dict:
        raise ValueError("it is no JSON object")
    return info  # pyright: ignore[reportUnknownVariableType]


def check_version(info: Mapping[str, Any], run_dir: Path) -> None:
    """Raise UsageError when a newer mlotel wrote this content of run.json."""
    version = info.get("schema_version", SCHEMA_VERSION)
    if type(version) is not int or version > SCHEMA_VERSION:
        raise UsageError(
            f"{run_dir / RUN_JSON}: schema_version={version!r}: a newer mlotel wrote it; this one reads up to "
            f"{SCHEMA_VERSION}. Upgrade it: pip install --upgrade mlotel"
        )


def wandb_id(run_dir: Path) -> str | None:
    """Return the id of the W&B run that a recorder of this run logs to; None without one, or before run.json exists."""
    try:
        run_id = read_info(run_dir)["wandb"]["id"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return run_id if isinstance(run_id, str) else None


def rows_written(run_dir: Path) -> int:
    """Return how many rows the recorders of a monitor say that they wrote so far; 0 before run.json says so."""
    try:
        return Totals.from_json(read_info(run_dir)["totals"]).rows
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0


def mark_failed(run_dir: Path, error: str) -> None:
    """Write into run.json that the run failed; do nothing where there is no run.json, or the disk is full."""
    try:
        _write_info(run_dir, read_info(run_dir) | {"status": "failed", "error": error, "ended_ns": time.time_ns()})
    except (OSError, ValueError):
        return


def _write_info(run_dir: Path, info: Mapping[str, Any]) -> None:
    with replacing(run_dir / RUN_JSON) as unfinished:
        unfinished.write_text(json.dumps(info, indent=2, default=str))


@dataclass(slots=True)
class Totals:
    """Counts since the start of a run; a monitor deletes its oldest rows, and these remain.

    Attributes:
        batches: by status.
        items: in all batches.
        items_done: in those that count, which are the ones that finished.
        spans: recorded, in a batch or not.
    """

    batches: Counter[str] = field(default_factory=Counter[str])
    items: int = 0
    items_done: int = 0
    spans: int = 0

    @property
    def rows(self) -> int:
        """Batches of every status."""
        return self.batches.total()

    def add(self, record: BatchRecord) -> None:
        """Count a row."""
        self.batches[record.status] += 1
        self.items += record.size
        if record.status in COUNTED:
            self.items_done += record.size

    def plus(self, other: "Totals") -> "Totals":
        """Return the sums of both."""
        return Totals(
            self.batches + other.batches,
            self.items + other.items,
            self.items_done + other.items_done,
            self.spans + other.spans,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what run.json holds."""
        return {
            "batches": dict(self.batches),
            "items": self.items,
            "items_done": self.items_done,
            "spans": self.spans,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Totals":
        """Read what `to_json` returned; what is missing is 0."""
        counts = [int(told.get(name, 0)) for name in ("items", "items_done", "spans")]
        return cls(Counter({str(name): int(count) for name, count in told.get("batches", {}).items()}), *counts)


@dataclass(slots=True)
class Before:
    """What this recorder takes over from earlier ones of the same run; the first one takes over nothing.

    Attributes:
        totals: what they counted.
        seconds: since the start of the run.
        port: where the last one listened, so that a page which is open finds it again; 0 when it did not.
        sinks: what they sent and lost, by sink; what waited in a sink when its recorder died counts as lost.
    """

    totals: Totals = field(default_factory=Totals)
    seconds: float = 0.0
    port: int = 0
    sinks: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])

    def with_sink(self, name: str, sink: Sink) -> Sink:
        """Return `sink` with what earlier recorders sent and lost added."""
        earlier = self.sinks.get(name, {})
        return replace(sink, sent=sink.sent + earlier.get("sent", 0), lost=sink.lost + earlier.get("lost", 0))


class RunFile:
    """Holds and writes run.json.

    Attributes:
        info: its content; change it and `write`.
        before: what this recorder goes on from.
    """

    def __init__(self, run_dir: Path, opening: Opening) -> None:
        """Begin, or continue what a dead recorder left; writes nothing yet."""
        self._run_dir = run_dir
        self.info: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "mode": opening.mode,
            "name": opening.name,
            "run_id": opening.run_id,
            "status": "running",
            "started_ns": opening.started_ns,
            "ended_ns": None,
            "overrides": opening.overrides,
            "identity": opening.identity,
            "recorder_pid": os.getpid(),
            "environment": None,
            "notes": [],
            "wandb": None,
            "summary": None,
        }
        self.before = self._continue(opening.restarts) if opening.restarts else Before()

    def update(self, info: Mapping[str, Any]) -> None:
        """Take what the workload reports; its notes are added to the earlier ones."""
        notes: list[str] = self.info["notes"]
        notes += [note for note in info.get("notes", ()) if note not in notes]
        self.info.update({key: value for key, value in info.items() if key not in ("config", "notes")})

    def write(self) -> None:
        """Replace run.json.

        Raises:
            RecorderError: when it cannot be written.
        """
        try:
            _write_info(self._run_dir, self.info)
        except OSError as error:
            raise RecorderError(f"{self._run_dir / RUN_JSON} cannot be written: {error}") from error

    def _continue(self, restarts: int) -> Before:
        """Take over what the last recorder wrote, and say so in the notes."""
        when = f"{datetime.fromtimestamp(time.time(), UTC):%Y-%m-%d %H:%M:%S} UTC"
        note = f"recorder {restarts + 1} took over at {when}; what the one before had not written is lost"
        try:
            told = read_info(self._run_dir)
            before = Before(
                Totals.from_json(told.get("totals") or {}),
                max(0.0, (time.time_ns() - int(told["started_ns"])) / 1e9),
                urlsplit(told.get("http") or "").port or 0,
                _ended(told.get("sinks") or {}),
            )
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            self.info["notes"].append(f"{note}; its run.json could not be read: {error}")
            return Before()
        self.info = {**told, **{key: self.info[key] for key in _OF_EACH_RECORDER}}
        self.info["notes"] = [*told.get("notes", ()), note]
        return before


def _ended(sinks: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, int]]:
    return {
        name: {"sent": int(sink["sent"]), "lost": int(sink["lost"]) + int(sink.get("queued", 0))}
        for name, sink in sinks.items()
    }
