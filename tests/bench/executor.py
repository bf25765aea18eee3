"""What the executors cost: a pipelined one against its slowest stage, a sequential one against a bare loop.

Every figure is a ratio of neighbours in time, so that other load on the machine hits both sides.
"""

import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from mlotel_cli.execute import Inference, Numbered, PipelinedExecutor, SequentialExecutor
from mlotel_cli.records import Batch
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.tracer import Recording

REQUIRED_SHARE = 0.95
ALLOWED_OVERHEAD = 0.02
BATCH_S = 0.005
FILL = 10
"""Batches until every stage of a pipeline has something to do."""
_BLOCK = 20
_RESAMPLES = 2_000

Stages = dict[str, Callable[[Any], Any]]


@dataclass
class Share:
    """Throughput times the time of the slowest stage, of several rounds: 1 is as fast as can be.

    Attributes:
        of_same: by the stages' times in the same run: how busy the slowest one is.
        of_beside: by their times in bare threads without queues, just before.
        batches_per_s: throughput.
        alone_ms: by stage, with nothing else going on.
    """

    of_same: list[float] = field(default_factory=list)
    of_beside: list[float] = field(default_factory=list)
    batches_per_s: list[float] = field(default_factory=list)
    alone_ms: dict[str, float] = field(default_factory=dict)


@dataclass
class Overhead:
    """Time of a batch through the executor over that of the bare loop, and its 95 % interval."""

    ratio: float
    low: float
    high: float
    pairs: int
    bare_ms: float

    @property
    def is_too_much(self) -> bool:
        """Whether the interval excludes what is allowed."""
        return self.low > 1 + ALLOWED_OVERHEAD


def sleeping() -> Stages:
    """Three stages that wait for something outside: 2, 5 and 3 ms."""
    return {
        name: (lambda value, s=seconds: time.sleep(s) or value)
        for name, seconds in {"fetch": 0.002, "infer": 0.005, "store": 0.003}.items()
    }


def multiplying(seconds: dict[str, float]) -> Stages:
    """Stages of matrix products on one torch thread each, about so long; torch releases the interpreter's lock."""
    weights = torch.randn(192, 192) / 14
    data = torch.randn(192, 192)

    def stage(number: int) -> Callable[[Any], Any]:
        def run(value: Any) -> Any:
            result = data
            for _ in range(number):
                result = result @ weights
            return value

        return run

    probe = stage(200)
    probe(None)
    one_s = min(_time_s(probe) for _ in range(5)) / 200
    return {name: stage(max(1, round(length / one_s))) for name, length in seconds.items()}


@contextmanager
def recording() -> Generator[None]:
    """Spans on, as in a run; what is recorded is thrown away."""
    before = api.PROVIDER.backend
    api.use(Recording(deque(maxlen=1_000).append))
    try:
        yield
    finally:
        api.use(before)


def measure_pipelined(stages: Stages, *, rounds: int, seconds: float) -> Share:
    """Alternate the stages side by side in bare threads, and the pipelined executor."""
    alone_s = alone(stages)
    share = Share(alone_ms={name: each * 1e3 for name, each in alone_s.items()})
    num_batches = FILL + max(20, round(seconds / max(alone_s.values())))
    for _ in range(rounds):
        beside_s = beside_each_other(stages, seconds=seconds)
        with recording():
            rate, slowest_s = pipelined_rate(stages, num_batches)
        share.batches_per_s.append(rate)
        share.of_same.append(rate * slowest_s)
        share.of_beside.append(rate * max(beside_s.values()))
    return share


def alone(stages: Stages, *, calls: int = 40) -> dict[str, float]:
    """Mean seconds of each stage with nothing else going on in this process."""
    with Inference("cpu")():
        return {name: statistics.fmean(_time_s(stage) for _ in range(calls)) for name, stage in stages.items()}


def beside_each_other(stages: Stages, *, seconds: float) -> dict[str, float]:
    """Mean seconds of each stage while the others run in threads of their own, without a queue between them."""
    means: dict[str, float] = {}
    go = threading.Barrier(len(stages))

    def repeat(name: str, stage: Callable[[Any], Any]) -> None:
        with Inference("cpu")():
            go.wait()
            calls, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                stage(None)
                calls += 1
            means[name] = (time.perf_counter() - start) / calls

    threads = [threading.Thread(target=repeat, args=each) for each in stages.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return means


def pipelined_rate(stages: Stages, num_batches: int) -> tuple[float, float]:
    """Batches a second, from when the pipeline is full until the source ends, and the slowest stage's mean seconds."""
    times_s: dict[str, list[float]] = {name: [] for name in stages}

    def timed(name: str, stage: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda value: times_s[name].append(_time_s(stage)) or value

    executor = PipelinedExecutor(
        {name: timed(name, stage) for name, stage in stages.items()}, inference=Inference("cpu")
    )
    with closing(executor.run(batches(num_batches))) as running:
        came = [time.perf_counter() for _ in running]
    kept = came[FILL:-FILL]
    slowest_s = max(statistics.fmean(each[FILL:-FILL]) for each in times_s.values())
    return (len(kept) - 1) / (kept[-1] - kept[0]), slowest_s


def measure_sequential(*, with_spans: bool, pairs: int = 800) -> Overhead:
    """Alternate single batches, first one and then the other in front."""
    stages = multiplying({name: BATCH_S / 3 for name in ("detect", "align", "read")})
    bare_s: list[float] = []
    through_s: list[float] = []

    def bare(_value: Any) -> None:
        value = None
        for stage in stages.values():
            value = stage(value)

    with (
        Inference("cpu")(),
        recording() if with_spans else nullcontext(),
        closing(SequentialExecutor(stages).run(batches(pairs + _BLOCK))) as running,
    ):
        for _ in range(_BLOCK):  # warm
            bare(None)
            next(running)
        for pair in range(pairs):
            for kind in (0, 1) if pair % 2 else (1, 0):
                (through_s if kind else bare_s).append(_time_s((lambda _value: next(running)) if kind else bare))
    ratios = [through / plain for through, plain in zip(through_s, bare_s, strict=True)]
    low, high = interval(ratios)
    return Overhead(statistics.median(ratios), low, high, pairs, statistics.median(bare_s) * 1e3)


def interval(ratios: list[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the median by block bootstrap: neighbours share what else the machine does."""
    draw = random.Random(seed)
    blocks = [ratios[n : n + _BLOCK] for n in range(0, len(ratios) - _BLOCK + 1, _BLOCK)]
    medians = sorted(
        statistics.median([ratio for block in draw.choices(blocks, k=len(blocks)) for ratio in block])
        for _ in range(_RESAMPLES)
    )
    return medians[round(0.025 * _RESAMPLES)], medians[round(0.975 * _RESAMPLES) - 1]


def batches(number: int) -> Iterator[Numbered]:
    """So many, with nothing in them."""
    for index in range(number):
        yield Numbered(index, 0, Batch(index, ["0"], None))


def _time_s(stage: Callable[[Any], Any]) -> float:
    start = time.perf_counter()
    stage(None)
    return time.perf_counter() - start
