"""What only the workload knows of a run that is over, as the analysis needs it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlotel_cli.summary import Telemetry, Warmup
from mlotel_cli.typed_json import from_json


@dataclass(slots=True, kw_only=True)
class Closing:
    """How a run went. A workload that was killed says nothing, and every field keeps its default.

    Attributes:
        accuracy: every metric over the run; None where it cannot be computed.
        accuracy_ci95: [low, high] of the metrics that know their own interval.
        wall_s: from the first batch to the last, scoring included.
        scoring_s: the part of it that scoring took, and that would not have passed without scoring.
        caller_s: what scoring took, also beside running stages.
        cpu_s: processor time of all threads over `wall_s`.
        cores: processor cores that they may use.
        warmup: batches that ran before.
        telemetry: counters of the workload's side.
    """

    accuracy: dict[str, float | None] = field(default_factory=dict[str, float | None])
    accuracy_ci95: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    wall_s: float | None = None
    scoring_s: float | None = None
    caller_s: float | None = None
    cpu_s: float | None = None
    cores: int | None = None
    warmup: Warmup | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)

    @classmethod
    def from_json(cls, told: Mapping[str, object]) -> "Closing":
        """Read the workload's last message.

        Raises:
            ValueError: it makes no sense.
        """
        return from_json(cls, {name: part for name, part in told.items() if part is not None})
