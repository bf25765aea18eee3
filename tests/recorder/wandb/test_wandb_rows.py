"""What W&B is given: keys, rows, order, windows, worst samples."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.recorder.wandb.wandb_rows import BatchOrder, KeyNames, RowBuilder, RowMerger, WorstSamples
from mlotel_cli.records import BatchRecord, Sample, StageTime


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(batch: int, **values: object) -> BatchRecord:
    return BatchRecord(batch=batch, source_batch=batch, repeat=0, start_ns=0, size=1, status="scored", **values)


def order(clock: Clock | None = None, *, max_waiting: int = 1000) -> BatchOrder:
    return BatchOrder(max_waiting=max_waiting, max_wait_s=30.0, clock=clock or Clock())


def pushed(batches: BatchOrder, *indices: int) -> list[int]:
    for index in indices:
        batches.push(record(index))
    return [ready.batch for ready in batches.ready()]


def test_a_row_holds_every_number_of_its_record_and_nothing_else() -> None:
    row = RowBuilder().row(
        record(
            7,
            latency_ms=12.5,
            stages={
                "reader": StageTime(host_ms=4.0, device_ms=3.5, queue_ms=0.25, calls=2),
                "detector": StageTime(host_ms=6.0, calls=1),
                "source": StageTime(queue_ms=1.0, calls=0),
            },
            accuracy={"ap50": 0.5},
            data={"num_detections": 3.0},
        )
    )
    assert row == {
        "batch": 7,
        "latency/batch_ms": 12.5,
        "latency/reader_ms": 4.0,
        "device/reader_ms": 3.5,
        "queue/reader_ms": 0.25,
        "latency/detector_ms": 6.0,
        "queue/source_ms": 1.0,
        "accuracy/ap50": 0.5,
        "data/num_detections": 3.0,
    }


def test_a_batch_that_failed_at_once_still_has_a_row() -> None:
    assert RowBuilder().row(record(3)) == {"batch": 3}


def test_names_that_w_and_b_cannot_take_become_keys_that_it_can() -> None:
    builder = RowBuilder()
    stages = {name: StageTime(host_ms=float(n), calls=1) for n, name in enumerate(("a/b", "a.b", "a_b", "batch", ""))}
    row = builder.row(record(0, latency_ms=9.0, stages=stages, accuracy={"a/b": 1.0}))
    assert row == {
        "batch": 0,
        "latency/batch_ms": 9.0,
        "latency/a_b_ms": 0.0,
        "latency/a_b_2_ms": 1.0,
        "latency/a_b_3_ms": 2.0,
        "latency/batch_2_ms": 3.0,
        "latency/__ms": 4.0,
        "accuracy/a_b": 1.0,
    }
    assert builder.renamed == {
        "latency/a_b_ms": "a/b",
        "latency/a_b_2_ms": "a.b",
        "latency/a_b_3_ms": "a_b",
        "latency/batch_2_ms": "batch",
        "latency/__ms": "",
        "accuracy/a_b": "a/b",
    }


@given(st.lists(st.text(), unique=True, max_size=12))
def test_two_names_never_share_a_key(names: list[str]) -> None:
    keys = KeyNames({"batch"})
    given_keys = [keys[name] for name in names]
    assert len(set(given_keys)) == len(names)
    assert given_keys == [keys[name] for name in names]
    assert "batch" not in given_keys


def test_batches_go_out_in_order_as_soon_as_they_can() -> None:
    batches = order()
    assert pushed(batches, 1, 3) == []
    assert pushed(batches, 0) == [0, 1]
    assert pushed(batches, 2) == [2, 3]
    assert len(batches) == 0


@given(st.permutations(range(40)))
def test_any_arrival_order_goes_out_sorted(indices: list[int]) -> None:
    batches = order()
    assert [batch for index in indices for batch in pushed(batches, index)] == list(range(40))


def test_a_gap_is_given_up_when_too_many_wait_behind_it() -> None:
    batches = order(max_waiting=3)
    assert pushed(batches, 1, 2, 4) == []
    assert pushed(batches, 5) == [1, 2]
    assert pushed(batches, 3) == [3, 4, 5]


def test_a_gap_is_given_up_when_the_first_behind_it_waited_too_long() -> None:
    clock = Clock()
    batches = order(clock)
    assert pushed(batches, 0, 2) == [0]
    clock.now += 29.9
    assert pushed(batches, 4) == []
    clock.now += 0.1
    assert pushed(batches) == [2]
    clock.now += 29.9
    assert pushed(batches) == []
    clock.now += 0.1
    assert pushed(batches) == [4]


def test_a_batch_that_comes_after_its_gap_was_given_up_goes_out_at_once() -> None:
    batches = order(max_waiting=0)
    assert pushed(batches, 5) == [5]
    assert pushed(batches, 2) == [2]
    assert pushed(batches, 6) == [6]


def test_what_waits_at_the_end_goes_out_in_order() -> None:
    batches = order()
    assert pushed(batches, 9, 4, 6) == []
    assert [rest.batch for rest in batches.rest()] == [4, 6, 9]
    assert len(batches) == 0


def test_rows_pass_as_they_are_up_to_the_rate_and_then_merged() -> None:
    clock = Clock()
    merger = RowMerger(rows_per_minute=2, clock=clock)
    rows = [{"batch": n, "latency/batch_ms": float(n)} for n in range(5)]
    assert merger.add(rows[0]) == (rows[0], 1)
    assert merger.add(rows[1]) == (rows[1], 1)
    assert merger.add(rows[2]) is None
    clock.now += 29.0
    assert merger.add(rows[3]) is None
    clock.now += 1.0
    assert merger.due() == ({"batch": 3, "latency/batch_ms": 2.5, "batches_merged": 2}, 2)
    assert merger.due() is None
    assert merger.add(rows[4]) is None
    assert merger.close() == (rows[4], 1)
    assert merger.close() is None
    assert (merger.num_merges, merger.num_merged) == (1, 2)


def test_a_merged_row_is_the_mean_over_the_rows_that_have_the_key() -> None:
    clock = Clock()
    merger = RowMerger(rows_per_minute=1, clock=clock)
    merger.add({"batch": 0})
    for row in ({"batch": 1, "a": 1.0}, {"batch": 2}, {"batch": 3, "a": 2.0, "b": math.nan}):
        assert merger.add(row) is None
    closed = merger.close()
    assert closed is not None
    assert closed[0].pop("b") != closed[0].get("b")
    assert closed == ({"batch": 3, "a": 1.5, "batches_merged": 3}, 3)


def test_waiting_does_not_save_up_more_than_a_minute_of_rows() -> None:
    clock = Clock()
    merger = RowMerger(rows_per_minute=2, clock=clock)
    clock.now += 3600
    assert [merger.add({"batch": n}) is not None for n in range(4)] == [True, True, False, False]


def worst(scores: list[float | None], *, count: int) -> list[str]:
    samples = WorstSamples(count=count)
    for batch, score in enumerate(scores):
        samples.add(batch, [Sample(f"s{batch}", {"score": score})])
    return [row[0] for row in samples.table()[1]]


def test_the_samples_with_the_lowest_mean_score_are_kept_worst_first() -> None:
    samples = WorstSamples(count=2)
    samples.add(0, [Sample("good", {"a": 1.0, "b": 0.9}), Sample("half", {"a": 0.0, "b": 1.0}, "p", "t")])
    samples.add(1, [Sample("bad", {"a": None, "b": 0.1}), Sample("unscored", {"a": None, "b": None})])
    assert samples.table() == (
        ["id", "a", "b", "prediction", "target", "batch"],
        [["bad", None, 0.1, None, None, 1], ["half", 0.0, 1.0, "p", "t", 0]],
    )


def test_a_score_that_is_not_a_number_is_the_worst() -> None:
    assert worst([0.0, math.nan, 0.5], count=2) == ["s1", "s0"]


def test_between_equals_the_earlier_sample_stays() -> None:
    assert worst([0.5, 0.5, 0.5, 0.5], count=2) == ["s0", "s1"]


def test_without_scores_there_is_no_table() -> None:
    assert WorstSamples().table() == ([], [])


@pytest.mark.parametrize("seed", range(5))
def test_the_heap_keeps_what_sorting_everything_would(seed: int) -> None:
    rng = random.Random(seed)
    scores = [rng.choice([None, rng.random()]) for _ in range(300)]
    ranked = sorted((score, n) for n, score in enumerate(scores) if score is not None)
    assert worst(scores, count=20) == [f"s{n}" for _, n in ranked[:20]]


def test_images_are_a_column_of_their_own_where_there_are_any() -> None:
    worst = WorstSamples()
    worst.add(3, [Sample("plain", {"score": 0.2}), Sample("drawn", {"score": 0.1}, image=b"png")])

    columns, rows = worst.table()

    assert columns == ["id", "score", "prediction", "target", "batch", "image"]
    assert [(row[0], row[-1]) for row in rows] == [("drawn", b"png"), ("plain", None)]
