"""Settings that the configuration shares with the layers that apply them. Standard library only."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


def bounded(default: Any, *, low: float, high: float | None = None) -> Any:
    """Declare a number that `config.check` refuses outside `low` to `high`; both are allowed, and so is None."""
    return field(default=default, metadata={"low": low, "high": high})


class TrackerMode(StrEnum):
    """Where W&B rows go; auto is online with a key, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(slots=True)
class TrackerOptions:
    """How a run appears in W&B, as far as a user chooses it; the keys of `tracker` in the configuration."""

    mode: str = "auto"
    """auto | online | offline | disabled."""
    project: str = "mlotel"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null takes the account's default."""
    group: str | None = None
    """W&B group; null takes the sweep's name."""
    tags: list[str] = field(default_factory=list[str])
    """W&B tags."""
    notes: str | None = None
    """W&B notes."""
    init_timeout_s: float = bounded(5.0, low=0.5, high=60)
    """Seconds to reach the server; after that the run is logged offline."""
    finish_timeout_s: float = bounded(30.0, low=1, high=3600)
    """Seconds to wait for the upload at the end."""


@dataclass(slots=True)
class OtlpSettings:
    """`telemetry.otlp`: traces and metrics to an OpenTelemetry collector, over HTTP.

    For keys at null the standard variables OTEL_EXPORTER_OTLP_* apply; without them nothing is sent.
    """

    endpoint: str | None = None
    """Base URL, such as http://127.0.0.1:4318; /v1/traces and /v1/metrics are appended."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    """Sent with every request."""
    timeout_s: float | None = bounded(None, low=0.1, high=600)
    """Seconds for one request; null: the standard variable, or 10. A failed request is repeated for up to 5 minutes."""
    queue_size: int = bounded(20_000, low=1, high=10_000_000)
    """Spans that may wait to be sent; further spans are dropped and counted."""
    metrics_interval_s: float = bounded(15.0, low=0.1, high=3600)
    """Seconds between two metric exports."""


class WhenFull(StrEnum):
    """What a live source does with a frame when the queue is full."""

    drop_oldest = "drop_oldest"
    drop_newest = "drop_newest"
    block = "block"


@dataclass(slots=True)
class SourcePolicy:
    """The keys of `source` that set how its items are queued and batched; the other keys are the source's arguments."""

    when_full: WhenFull | None = None
    """drop_oldest | drop_newest | block (the source waits, as a file can); null: drop_oldest if live, else block."""
    queue_size: int = bounded(8, low=1, high=100_000)
    """Items that may wait to be batched."""
    batch_size: int = bounded(1, low=1, high=100_000)
    """Most items in a batch."""
    batch_wait_ms: float = bounded(50.0, low=0, high=60_000)
    """Milliseconds to wait for a full batch, from the arrival of its first item."""


@dataclass(slots=True)
class Retention:
    """`monitor.retention`: how much of the run stays on disk; the oldest hours are deleted first."""

    max_gb: float = bounded(10.0, low=0.001)
    """Gigabytes of batches and spans together."""
    max_age_h: float = bounded(168.0, low=0.01)
    """Hours that batches and spans are kept."""
    compact_s: float = bounded(3600.0, low=1, high=86_400)
    """Seconds after which the small part files of a period are merged to one."""
