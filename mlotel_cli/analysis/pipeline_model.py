"""What a pipeline's throughput would be: its recorded times, replayed through stations and bounded queues. Pure.

A station takes one batch after the other, in order, and holds on to a finished one while the queue behind it is full
(blocking after service). Times that vary make a pipeline with small queues slower than its slowest stage alone, which
is why a formula, 1 / max(mean time), would not do. The first station is the source, the last one
takes the results.

Outside the model: stations that slow each other down, because they share the interpreter's lock, cores or one GPU.
Recorded times contain what they cost each other while they were recorded.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Station:
    """A place that works on one batch after the other.

    Attributes:
        name: of the stage.
        service_s: time that each batch takes, in their order.
        replicas: how many batches it works on at once.
    """

    name: str
    service_s: Sequence[float]
    replicas: int = 1

    @property
    def busy_s(self) -> float:
        """Time spent working, over all replicas."""
        return sum(self.service_s)


def sequential_s(stations: Sequence[Station]) -> float:
    """How long all batches take, one stage after the other; seconds."""
    return sum(station.busy_s for station in stations)


def pipelined_s(stations: Sequence[Station], *, queue_size: int) -> float:
    """How long all batches take from the first to the last, stages beside each other; seconds.

    Args:
        stations: from the source to the one that takes the results, with as many times each.
        queue_size: batches that may wait before each station but the source; at least 1.
    """
    if not stations:
        return 0.0
    free_s = [[0.0] * station.replicas for station in stations]  # a heap each: when a replica is free again
    taken_s: list[list[float]] = [[] for _ in stations]
    end_s = 0.0
    last = len(stations) - 1
    for index in range(len(stations[0].service_s)):
        at_s = 0.0
        for position, station in enumerate(stations):
            before_s = taken_s[position][-1] if index else 0.0
            # Not before the batch ahead of it: replicas may finish in any order, batches leave in their own order.
            take_s = max(at_s, before_s, heapq.heappop(free_s[position]))
            taken_s[position].append(take_s)
            at_s = take_s + station.service_s[index]
            if position == last:
                end_s = max(end_s, at_s)
            elif index >= queue_size:  # there is room once the batch `queue_size` before it was taken
                at_s = max(at_s, taken_s[position + 1][index - queue_size])
            heapq.heappush(free_s[position], at_s)
    return end_s


@dataclass(frozen=True)
class PipelineModel:
    """A run's stations and how long it really took.

    Attributes:
        stations: from the source to the one that takes the results.
        queue_size: of the run, or what it would be.
        is_pipelined: whether the run was.
        measured_s: wall time of its batches.
    """

    stations: Sequence[Station]
    queue_size: int
    is_pipelined: bool
    measured_s: float

    @cached_property
    def simulated_s(self) -> float:
        """Wall time of the run by the model."""
        return self._replay(self.stations, self.queue_size)

    @property
    def error(self) -> float:
        """Simulated by measured wall time, less one: the part that the model leaves out."""
        return self.simulated_s / self.measured_s - 1

    def gain(
        self,
        *,
        faster: Mapping[str, float] | None = None,
        replicas: Mapping[str, int] | None = None,
        queue_size: int | None = None,
    ) -> float:
        """Predicted by measured throughput, where something is changed: 1.6 is 60 % more batches a second.

        Both are simulated, so that what the model leaves out cancels as far as it is a constant factor.

        Args:
            faster: by which factor, by station name.
            replicas: how many, by station name.
            queue_size: another one.
        """
        stations = [_changed(station, faster or {}, replicas or {}) for station in self.stations]
        after_s = self._replay(stations, queue_size or self.queue_size)
        return self.simulated_s / after_s if after_s else 1.0

    def gain_of_overlap(self) -> float:
        """Best throughput with every stage in a thread of its own, by the measured one; for a sequential run."""
        after_s = pipelined_s(self.stations, queue_size=self.queue_size)
        return self.measured_s / after_s if after_s else 1.0

    def _replay(self, stations: Sequence[Station], queue_size: int) -> float:
        return pipelined_s(stations, queue_size=queue_size) if self.is_pipelined else sequential_s(stations)


def _changed(station: Station, faster: Mapping[str, float], replicas: Mapping[str, int]) -> Station:
    factor = faster.get(station.name, 1.0)
    times_s = station.service_s if factor == 1.0 else [time_s / factor for time_s in station.service_s]
    return replace(station, service_s=times_s, replicas=replicas.get(station.name, station.replicas))
