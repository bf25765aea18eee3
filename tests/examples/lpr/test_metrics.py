import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lpr.data import FrameTargets
from lpr.metrics import (
    CharacterErrorRate,
    Detections,
    InCondition,
    PlateAP50,
    PlateExactMatch,
    VehicleAP50,
    average_precision,
    edits,
    iou_matrix,
    match,
)
from lpr.pipeline import Reading
from PIL import Image

NOTHING = [float("nan")] * 4
A, B, C = [10.0, 10.0, 60.0, 60.0], [100.0, 10.0, 160.0, 80.0], [200.0, 40.0, 280.0, 120.0]


def plate_of(box: list[float]) -> list[float]:
    return [box[0] + 10, box[1] + 30, box[0] + 40, box[1] + 40]


def targets(*vehicles: list[float], texts: tuple[str, ...] = (), ignore: tuple[int, ...] = ()) -> FrameTargets:
    n = len(vehicles)
    texts = texts or ("",) * n
    return FrameTargets(
        size=(768, 432),
        vehicles_N4=np.array(vehicles, dtype=np.float32).reshape(-1, 4),
        ignore_N=np.array([i in ignore for i in range(n)], dtype=np.bool_),
        plates_N4=np.array(
            [plate_of(v) if t else NOTHING for v, t in zip(vehicles, texts, strict=True)], dtype=np.float32
        ).reshape(-1, 4),
        texts=list(texts),
        readable_N=np.array([bool(t) for t in texts], dtype=np.bool_),
        tracks_N=np.arange(n),
        condition="day",
    )


def reading(box: list[float], text: str = "", *, score: float = 0.9) -> Reading:
    return Reading(
        vehicle_box=box,
        vehicle_score=score,
        plate_box=plate_of(box) if text else None,
        plate_score=score if text else 0.0,
        text=text,
        text_score=score,
    )


def test_perfect_output_is_perfect() -> None:
    output, truth = [[reading(A, "AB1"), reading(B, "CD2")]], [targets(A, B, texts=("AB1", "CD2"))]
    for metric, best in (
        (VehicleAP50(), 1.0),
        (PlateAP50(), 1.0),
        (PlateExactMatch(), 1.0),
        (CharacterErrorRate(), 0.0),
    ):
        assert metric.update(output, truth) == pytest.approx(best)
        assert metric.compute() == pytest.approx(best)


def test_a_missed_plate_counts_as_wrong_and_fully() -> None:
    output, truth = [[reading(A, "AB1"), reading(B)]], [targets(A, B, texts=("AB1", "CD23"))]
    exact, errors = PlateExactMatch(), CharacterErrorRate()
    assert exact.update(output, truth) == 0.5
    assert errors.update(output, truth) == pytest.approx(4 / 7)
    assert errors.sample_scores(output, truth) == [pytest.approx(3 / 7)]


def test_one_wrong_character() -> None:
    output, truth = [[reading(A, "AB7")]], [targets(A, texts=("AB1",))]
    assert PlateExactMatch().update(output, truth) == 0.0
    assert CharacterErrorRate().update(output, truth) == pytest.approx(1 / 3)


def test_a_reading_at_the_wrong_place_does_not_count() -> None:
    assert PlateExactMatch().update([[reading(C, "AB1")]], [targets(A, texts=("AB1",))]) == 0.0


def test_ignored_vehicles_count_neither_way() -> None:
    truth = [targets(A, B, ignore=(1,))]
    for output in ([[reading(A)]], [[reading(A), reading(B)]]):
        metric = VehicleAP50()
        assert metric.update(output, truth) == 1.0
        assert metric.compute() == pytest.approx(1.0)


def test_extra_and_missing_boxes_lower_both_scores() -> None:
    truth = [targets(A, B)]
    metric = VehicleAP50()
    assert metric.update([[reading(A, score=0.5), reading(C, score=0.9)]], truth) == pytest.approx(0.5)
    assert metric.compute() == pytest.approx(0.25, abs=0.01)  # precision 1/2 up to recall 1/2


def test_narrow_plates_are_ignored() -> None:
    truth = [targets(A, texts=("AB1",))]
    assert PlateAP50(min_width_px=16).update([[]], truth) == 0.0
    assert PlateAP50(min_width_px=31).update([[]], truth) is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_average_precision_agrees_with_a_plain_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = list[Detections]()
    for _ in range(4):
        true = _boxes(rng, int(rng.integers(1, 5)))
        kept = true[rng.random(len(true)) < 0.8] + rng.uniform(-4, 4, 4)
        found = np.concatenate([kept, _boxes(rng, int(rng.integers(0, 3)))])
        parts.append(Detections(found, rng.random(len(found)), true, np.zeros(len(true), dtype=np.bool_)))
    assert average_precision(parts) == pytest.approx(_plain_ap(parts), abs=1e-6)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 300, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(30, 80, (count, 2))], axis=1)


def _plain_ap(parts: list[Detections]) -> float:
    """Return the 101-point AP at IoU 0.5, written from its definition."""
    scored = list[tuple[float, bool]]()
    for part in parts:
        free = set(range(len(part.true_M4)))
        for i in np.argsort(-part.score_N, kind="stable"):
            overlap = iou_matrix(part.found_N4[i : i + 1], part.true_M4)[0]
            best = max(free, key=lambda j: overlap[j], default=None)
            hit = best is not None and overlap[best] >= 0.5
            if hit:
                free.discard(best)
            scored.append((float(part.score_N[i]), bool(hit)))
    if not scored:
        return 0.0
    scored.sort(key=lambda pair: -pair[0])
    hits = np.cumsum([hit for _, hit in scored])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / sum(len(p.true_M4) for p in parts)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.mean([precision[recall >= r].max(initial=0.0) for r in np.linspace(0, 1, 101)]))


@pytest.mark.parametrize("kind", [VehicleAP50, PlateAP50, PlateExactMatch, CharacterErrorRate])
def test_merged_parts_equal_the_whole(kind: type) -> None:
    first = ([[reading(A, "AB1")]], [targets(A, texts=("AB1",))])
    second = ([[reading(B, "XX9", score=0.3), reading(C, "Z", score=0.4)]], [targets(B, texts=("CD2",))])
    whole, left, right = kind(), kind(), kind()
    for metric, part in ((whole, first), (whole, second), (left, first), (right, second)):
        metric.update(*part)
    left.merge(right.state())
    assert left.compute() == whole.compute()
    left.reset()
    with pytest.raises(ValueError, match="no frame"):
        left.compute()


def test_nothing_to_score_is_none_and_cannot_be_computed() -> None:
    for metric, word in ((VehicleAP50(), "no vehicle"), (PlateAP50(), "no plate"), (PlateExactMatch(), "no readable")):
        assert metric.update([[]], [targets()]) is None
        assert metric.sample_scores([[]], [targets()]) == [None]
        with pytest.raises(ValueError, match=word):
            metric.compute()


def test_another_number_of_results_than_frames_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 results for 1 frames"):
        VehicleAP50().update([[], []], [targets()])


def test_a_condition_is_scored_by_its_own_frames_alone() -> None:
    day, night = targets(A, texts=("AB1",)), targets(A, texts=("AB1",))
    night.condition = "night"
    output = [[reading(A, "AB1")], [reading(A, "XX1")]]
    by_day, by_night = InCondition(PlateExactMatch(), "day"), InCondition(PlateExactMatch(), "night")
    assert by_day.update(output, [day, night]) == 1.0
    assert by_night.update(output, [day, night]) == 0.0
    assert by_night.update(output[:1], [day]) is None
    by_day.merge(by_night.state())
    assert by_day.compute() == 0.5
    by_day.reset()
    with pytest.raises(ValueError, match="'day'"):
        by_day.compute()


def test_match_takes_each_box_once_best_first() -> None:
    found = np.array([[0, 0, 10, 10], [1, 0, 11, 10]], dtype=float)
    assert match(found, np.array([[1.0, 0.0, 11.0, 10.0]])) == {0: 1}
    assert match(found, np.array([[1.0, 0.0, 11.0, 10.0], [0.0, 0.0, 10.0, 11.0]])) == {0: 1, 1: 0}
    assert match(found, np.array([[0.0, 0.0, 10.0, 25.0]])) == {}  # overlaps by 0.4
    assert match(found[:0], np.array([[1.0, 0.0, 11.0, 10.0]])) == {}


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "", 0), ("ABC", "ABC", 0), ("", "AB", 2), ("KITTEN", "SITTING", 3)]
)
def test_edits(a: str, b: str, distance: int) -> None:
    assert edits(a, b) == edits(b, a) == distance


def test_intervals_resample_vehicles_not_frames() -> None:
    """Of twenty vehicles in two hundred frames four are never read: the interval is that of twenty samples, not 200."""
    exact, errors = PlateExactMatch(), CharacterErrorRate()
    for vehicle in range(20):
        truth = targets(A, texts=("AB1",))
        truth.tracks_N[:] = vehicle
        text = "XYZ" if vehicle % 5 == 0 else "AB1"
        for metric in (exact, errors):
            for _ in range(10):
                metric.update([[reading(A, text)]], [truth])

    low, high = exact.ci95() or (0.0, 1.0)

    assert exact.compute() == 0.8
    binomial = 1.96 * (0.8 * 0.2 / 20) ** 0.5
    assert (high - low) / 2 == pytest.approx(binomial, rel=0.35)
    assert errors.ci95() == pytest.approx((1 - high, 1 - low), abs=0.03)


def test_the_image_of_a_sample_is_the_plate_that_was_not_read() -> None:
    frames = torch.zeros(2, 3, 100, 200, dtype=torch.uint8)
    truth = targets(A, texts=("AB1",))
    x0, y0, x1, y1 = (int(edge) for edge in truth.plates_N4[0])
    frames[1, 0, y0:y1, x0:x1] = 255
    metric = PlateExactMatch()

    image = metric.sample_image(frames, [[], [reading(A, "XB1")]], [truth, truth], 1)

    picture = Image.open(io.BytesIO(image))
    assert picture.width == 160
    assert picture.getpixel((80, picture.height // 2)) == (255, 0, 0)
    assert picture.getpixel((0, 0)) != (255, 0, 0)
    whole = Image.open(io.BytesIO(metric.sample_image(frames, [[], [reading(A, "AB1")]], [truth, truth], 1)))
    assert whole.size == (160, 80)
