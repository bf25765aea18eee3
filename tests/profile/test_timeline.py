"""Ranges of a recording: which of them is around which, and to which batch they belong. Times are ns."""

import pytest

from mlotel_cli.profile.timeline import Range, Track, nest, tracks


def range_(name: str, start: int, end: int, *, thread: int = 1, category: str = "internal", **more: object) -> Range:
    return Range(name, category, start, end, thread, 7, **more)  # type: ignore[arg-type]


def root(batch: int, start: int, end: int, *, thread: int = 1, crosses: bool = False) -> Range:
    return range_("batch", start, end, thread=thread, category="batch", batch=batch, crosses=crosses)


def name(found: Range | None) -> str | None:
    return found.name if found is not None else None


@pytest.mark.parametrize(
    ("category", "crosses", "is_root", "encloses"),
    [
        ("batch", False, True, True),
        ("batch", True, True, False),
        ("queue", False, False, True),
        ("queue", True, False, False),
        ("internal", True, False, True),  # an async stage: its thread works for it until it ends
        ("internal", False, False, True),
    ],
)
def test_a_batch_that_moves_on_encloses_nothing(category: str, crosses: bool, is_root: bool, encloses: bool) -> None:
    found = range_("x", 0, 1, category=category, crosses=crosses)
    assert (found.is_root, found.encloses) == (is_root, encloses)


@pytest.mark.parametrize(
    ("time_ns", "expected"),
    [(9, None), (10, "outer"), (19, "outer"), (20, "inner"), (30, "inner"), (31, "outer"), (50, "outer"), (51, None)],
)
def test_the_innermost_range_is_the_one_that_began_last(time_ns: int, expected: str | None) -> None:
    track = Track([range_("inner", 20, 30), range_("outer", 10, 50)])
    assert name(track.innermost(time_ns)) == expected


def test_of_two_with_the_same_start_the_longer_one_is_outside() -> None:
    track = Track([range_("short", 0, 5), range_("long", 0, 9)])
    assert [(each.name, name(parent)) for each, parent in track.parents()] == [("long", None), ("short", "long")]


def test_a_range_that_ended_long_ago_does_not_hide_one_that_is_open() -> None:
    track = Track([range_("open", 0, 100), *(range_(f"ended {n}", 10 * n, 10 * n + 5) for n in range(1, 5))])
    assert name(track.innermost(48)) == "open"
    assert name(track.innermost(44)) == "ended 4"
    assert name(track.innermost(44, below=4)) == "open"  # before "ended 4"


def test_every_thread_has_a_track_of_what_encloses() -> None:
    moved_on = root(0, 0, 100, crosses=True)
    ranges = [moved_on, range_("a", 10, 20), range_("b", 30, 40, thread=2), range_("c", 5, 6, thread=2)]
    found = {thread: [each.name for each in track.ranges] for thread, track in tracks(ranges).items()}
    assert found == {1: ["a"], 2: ["c", "b"]}


def test_a_stage_on_the_roots_thread_gets_its_parent_and_batch_from_what_is_around_it() -> None:
    batch, stage, inside = root(4, 0, 100), range_("stage", 10, 60), range_("inside", 20, 30)
    nest([inside, stage, batch])
    assert (batch.parent, stage.parent, inside.parent) == (None, batch, stage)
    assert (stage.batch, inside.batch) == (4, 4)


def test_a_stage_on_another_thread_joins_its_batch_by_number() -> None:
    batches = [root(0, 0, 100, crosses=True), root(1, 10, 110, crosses=True)]
    stage = range_("stage", 20, 40, thread=2, batch=1)
    inside = range_("inside", 25, 30, thread=2)
    nest([*batches, stage, inside])
    assert (stage.parent, inside.parent, inside.batch) == (batches[1], stage, 1)


def test_waiting_that_crosses_threads_hangs_below_its_batch() -> None:
    batch = root(3, 0, 100, crosses=True)
    waiting = range_("queue stage", 5, 50, category="queue", batch=3, crosses=True)
    nest([batch, waiting])
    assert waiting.parent is batch


def test_what_says_another_batch_than_the_range_around_it_goes_to_its_own() -> None:
    first, second = root(0, 0, 100), root(1, 200, 300)
    stray = range_("stage", 10, 20, batch=1)
    nest([first, second, stray])
    assert (stray.parent, stray.batch) == (second, 1)


def test_a_range_outside_any_batch_has_no_parent_and_no_batch() -> None:
    alone = range_("setup", 0, 5)
    nest([alone, root(0, 10, 20)])
    assert (alone.parent, alone.batch) == (None, None)


def test_a_batch_inside_another_range_keeps_its_own_number_and_no_parent() -> None:
    around, batch = range_("epoch", 0, 100), root(2, 10, 20)
    nest([around, batch])
    assert (batch.parent, batch.batch) == (None, 2)
