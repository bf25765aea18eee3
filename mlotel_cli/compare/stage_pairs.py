"""An evaluation beside a profile of the same pipeline: what each stage took in both. Pure.

Both runs are read on the batches that they have in common, because a profile records few of them and batches differ.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlotel_cli.columns import parse_columns
from mlotel_cli.records import COUNTED

if TYPE_CHECKING:
    import polars as pl

DISTURBED = 0.10
"""From which relative difference on the profiler is said to have disturbed a stage."""
BATCH = "batch"
CONFIGURED = ("pipeline", "data", "executor", "optimize", "seed")
"""Parts of a configuration that should be the same in both runs."""


@dataclass(frozen=True, slots=True)
class StageComparison:
    """One stage, or the whole batch, in both runs: medians over the common batches, milliseconds.

    Attributes:
        name: of the stage; `batch` is the whole.
        measure: host | device | queue | latency.
        left_ms: in the evaluation; None where it was not measured there.
        right_ms: in the profile.
        ratio: right by left: 1.2 is a profile that took 20 % longer.
        num_batches: common batches that have the figure in both runs.
    """

    name: str
    measure: str
    left_ms: float | None
    right_ms: float | None
    ratio: float | None
    num_batches: int

    @property
    def is_disturbed(self) -> bool:
        """True when host time or latency differ by more than a profiler may cost."""
        if self.ratio is None or self.measure not in ("host", "latency"):
            return False
        return abs(self.ratio - 1) > DISTURBED


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side. `num_common` counts the batches that both have."""

    rows: list[StageComparison]
    num_left: int
    num_right: int
    num_common: int

    def stages_only(self, *, left: bool) -> list[str]:
        """Stages that ran in one run and not in the other."""
        return [
            row.name
            for row in self.rows
            if row.measure == "host" and (row.right_ms if left else row.left_ms) is None
            if (row.left_ms if left else row.right_ms) is not None
        ]

    @property
    def has_common_stage(self) -> bool:
        """True when a stage ran in both, or neither has any."""
        stages = [row for row in self.rows if row.measure == "host"]
        return not stages or any(row.num_batches for row in stages)


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What two configurations say differently of the work: key, and both values; None where one has no such key."""
    flat = [dict(_flatten({name: each.get(name) for name in CONFIGURED})) for each in (left, right)]
    return [
        (key, flat[0].get(key), flat[1].get(key))
        for key in dict.fromkeys((*flat[0], *flat[1]))
        if flat[0].get(key) != flat[1].get(key)
    ]


def _flatten(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
        yield from _flatten(inner, f"{key}.{name}" if key else str(name))  # pyright: ignore[reportUnknownArgumentType]


def compare_stages(left: "pl.DataFrame", right: "pl.DataFrame") -> Comparison:
    """Compare two batches tables, the evaluation's and the profile's.

    Batches are the same when pass and index in the source agree.
    """
    import polars as pl

    keys = ["repeat", "source_batch"]
    left, right = (frame.filter(pl.col("status").is_in(COUNTED)) for frame in (left, right))
    common = left.select(keys).join(right.select(keys), on=keys)
    both = [common.join(frame, on=keys, how="left", maintain_order="left") for frame in (left, right)]
    times = [[time for time in parse_columns(frame.schema).times if time.measure != "lag_ms"] for frame in both]
    rows = [_compare(BATCH, "latency", *(frame["latency_ms"].to_list() for frame in both))]
    for time in dict.fromkeys((*times[0], *times[1])):
        values = (frame[time.name].to_list() if time in known else [] for frame, known in zip(both, times, strict=True))
        rows.append(_compare(time.stage, time.measure.removesuffix("_ms"), *values))
    return Comparison(rows, left.height, right.height, common.height)


def _compare(name: str, measure: str, *values: Sequence[float | None]) -> StageComparison:
    pairs = [(a, b) for a, b in zip(*values, strict=False) if a is not None and b is not None]
    left_ms, right_ms = (_median(each) for each in (list(zip(*pairs, strict=True)) or values))
    ratio = right_ms / left_ms if left_ms and right_ms is not None and pairs else None
    return StageComparison(name, measure, left_ms, right_ms, ratio, len(pairs))


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
