"""Which traces of a monitor are sent, and that no other span is kept."""

import random

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from mlotel_cli.recorder.sampling import TailSampler
from mlotel_cli.records import BatchRecord, SpanRecord


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def span(batch, *, trace=1 << 63, number=1, status="UNSET") -> SpanRecord:
    """Its trace id is outside any background's share below one half."""
    return SpanRecord(trace, number, 0, batch, "s", "INTERNAL", "t", "Main", 0, 1, status=status)


def row(batch, *, ms: float | None = 1.0, status="done") -> BatchRecord:
    return BatchRecord(batch, batch, 0, 0, 1, status, latency_ms=ms)


def sampler(**changes) -> TailSampler:
    return TailSampler(**({"slow_ms": 10.0, "background_rate": 0.0, "clock": Clock()} | changes))


def test_spans_wait_for_the_row_and_leave_in_order_of_their_ends():
    sampling = sampler()
    spans = [span(0, number=1), span(1, number=2), span(0, number=3)]
    for each in spans:
        sampling.add(each)
    assert sampling.decide(row(0, ms=11)) == [spans[0], spans[2]]
    assert sampling.decide(row(1, ms=10)) == []
    assert (sampling.kept, sampling.dropped) == ({"slow": 1}, 1)
    assert sampling.ready() == []


@pytest.mark.parametrize("status", ["failed", "skipped", "incomplete"])
def test_what_failed_is_kept_however_fast(status):
    sampling = sampler()
    sampling.add(span(0))
    assert len(sampling.decide(row(0, ms=None, status=status))) == 1
    assert sampling.kept == {"failed": 1}


def test_failed_comes_before_slow_in_the_counts():
    sampling = sampler()
    sampling.decide(row(0, ms=99, status="failed"))
    assert sampling.kept == {"failed": 1}


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 1.0])
def test_the_background_is_the_traces_that_opentelemetry_would_take(rate):
    drawn = random.Random(3)
    sampling, theirs = sampler(background_rate=rate), TraceIdRatioBased(rate)
    for batch in range(500):
        trace = drawn.getrandbits(128)
        sampling.add(span(batch, trace=trace))
        is_theirs = theirs.should_sample(None, trace, "s").decision.is_sampled()
        assert bool(sampling.decide(row(batch))) == is_theirs
    assert sampling.kept["background"] + sampling.dropped == 500


def test_without_a_limit_slow_is_above_the_p99_once_there_is_enough_data():
    clock = Clock()
    sampling = sampler(slow_ms=None, clock=clock)
    for batch in range(399):
        sampling.decide(row(batch, ms=20.0 if batch % 50 else 30.0))
    assert sampling.threshold_ms is None
    sampling.decide(row(399, ms=1000))
    assert not sampling.kept
    clock.now += 1
    sampling.decide(row(400, ms=30.0))
    assert sampling.threshold_ms == pytest.approx(30 * 1.02, rel=0.011)
    assert not sampling.kept
    sampling.decide(row(401, ms=33.0))
    assert sampling.kept == {"slow": 1}


def test_equal_latencies_are_not_slow():
    clock = Clock()
    sampling = sampler(slow_ms=None, clock=clock)
    drawn = random.Random(1)
    for batch in range(5000):
        clock.now += 0.05
        sampling.decide(row(batch, ms=50 + drawn.random()))
    assert sampling.kept["slow"] <= 50


def test_a_step_to_slower_batches_is_the_new_normal_after_some():
    clock = Clock()
    sampling = sampler(slow_ms=None, clock=clock)
    for batch in range(3000):
        clock.now += 0.1
        sampling.decide(row(batch, ms=10))
    for batch in range(3000, 4000):
        clock.now += 0.1
        sampling.decide(row(batch, ms=30))
    assert 20 <= sampling.kept["slow"] <= 60


def test_after_a_long_sleep_the_old_latencies_are_forgotten():
    clock = Clock()
    sampling = sampler(slow_ms=None, clock=clock)
    for batch in range(500):
        sampling.decide(row(batch, ms=10))
    clock.now += 1e6
    sampling.decide(row(500, ms=500))
    assert sampling.threshold_ms is None
    assert not sampling.kept


def test_late_spans_of_a_kept_batch_still_go_out_once_and_those_of_a_dropped_one_do_not():
    sampling = sampler()
    sampling.decide(row(0, ms=99))
    sampling.decide(row(1, ms=1))
    late = span(0)
    sampling.add(late)
    sampling.add(span(1))
    assert sampling.ready() == [late]
    assert sampling.ready() == []


def test_a_span_outside_any_batch_is_of_the_background_or_failed():
    sampling = sampler(background_rate=0.25)
    kept = [span(None, trace=1), span(None, status="ERROR")]
    for each in (*kept, span(None)):
        sampling.add(each)
    assert sampling.ready() == kept


def test_memory_is_bounded_by_spans_and_by_batches():
    sampling = sampler(max_spans=100, max_batches=10)
    for number in range(60):
        sampling.add(span(0, number=number))
        sampling.add(span(1, number=number))
    assert sampling.overflowed == 51  # the older batch went when both had 50 and the 101st came
    assert len(sampling.decide(row(1, ms=99))) == 60
    for batch in range(100, 111):
        sampling.add(span(batch))
    assert sampling.decide(row(100, ms=99)) == []
    assert len(sampling.decide(row(101, ms=99))) == 1


def test_decisions_are_remembered_for_late_spans_but_not_for_ever():
    sampling = sampler(max_batches=10)
    for batch in range(11):
        sampling.decide(row(batch, ms=99))
    sampling.add(span(0))
    sampling.add(span(1))
    assert [each.batch for each in sampling.ready()] == [1]


def test_description_counts_every_reason():
    sampling = sampler(background_rate=0.25)
    sampling.add(span(2, trace=1))
    for batch, record in enumerate((row(0, ms=99), row(1, status="failed"), row(2), row(3))):
        assert record.batch == batch
        sampling.decide(record)
    assert sampling.describe() == {
        "kept_failed": 1,
        "kept_slow": 1,
        "kept_background": 1,
        "dropped": 1,
        "spans_overflowed": 0,
    }
