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
