from collections import Counter

import numpy as np
import pytest
from lpr.composing import MIN_VEHICLE_PX, Truth
from lpr.conditions import CONDITIONS, draw_weather
from lpr.datasets import DATA_SETS
from lpr.plates import ALPHABET
from lpr.render import MAX_ORDINARY, ClipSpec, _traffic, render_clip
from lpr.road import HEIGHT, WIDTH, Road

Rendered = list[tuple[np.ndarray, list[Truth]]]


def test_a_seed_gives_the_same_clip_and_another_one_another(rendered: Rendered) -> None:
    again = list(render_clip(ClipSpec(seed=3, condition="day", num_frames=5)))
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(rendered, again, strict=True))
    assert [truths for _, truths in rendered] == [truths for _, truths in again]
    other, _ = next(render_clip(ClipSpec(seed=4, condition="day", num_frames=5)))
    assert not np.array_equal(other, rendered[0][0])


def test_boxes_lie_in_the_frame_and_plates_in_their_vehicles(rendered: Rendered) -> None:
    plates = 0
    for frame, truths in rendered:
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert len(truths) <= MAX_ORDINARY
        for truth in truths:
            x0, y0, x1, y1 = truth.box
            assert 0 <= x0 < x1 <= WIDTH
            assert 0 <= y0 < y1 <= HEIGHT
            assert set(truth.text) <= set(ALPHABET)
            if truth.plate_box is not None:
                plates += 1
                px0, py0, px1, py1 = truth.plate_box
                assert x0 <= (px0 + px1) / 2 <= x1
                assert y0 <= (py0 + py1) / 2 <= y1
            else:
                assert not truth.readable
    assert plates > 0


def test_a_busy_road_is_thinned_out() -> None:
    rng = np.random.default_rng(2)
    draw_weather(CONDITIONS["day"], rng)
    road = Road.draw(rng, crowded=False)

    def most(*, crowded: bool) -> int:
        vehicles = _traffic(road, np.random.default_rng(0), duration_s=2.0, crowded=crowded)
        return max(sum(bool(road.in_view(v.start_y + v.speed * t)) for v in vehicles) for t in np.arange(0, 2, 0.1))

    assert most(crowded=True) > MAX_ORDINARY
    assert most(crowded=False) <= MAX_ORDINARY


def test_tracks_move_and_keep_their_text(rendered: Rendered) -> None:
    texts: dict[int, set[str]] = {}
    places: dict[int, list[float]] = {}
    for _, truths in rendered:
        for truth in truths:
            texts.setdefault(truth.track, set()).add(truth.text)
            if not truth.ignore:
                places.setdefault(truth.track, []).append(truth.box[3])
    assert all(len(seen) == 1 for seen in texts.values())
    assert any(len(set(seen)) > 1 for seen in places.values())


def test_a_renewed_text_differs_from_frame_to_frame() -> None:
    clip = list(render_clip(ClipSpec(seed=3, condition="day", num_frames=2, renew_text=True)))
    first, second = ({t.track: t.text for t in truths} for _, truths in clip)
    shared = first.keys() & second.keys()
    assert shared
    assert all(first[track] != second[track] for track in shared)


@pytest.mark.slow
def test_conditions_differ_in_light_as_they_should() -> None:
    light = {
        name: np.mean([next(render_clip(ClipSpec(seed=s, condition=name, num_frames=1)))[0].mean() for s in (11, 12)])
        for name in ("day", "dusk", "night", "deep_night")
    }
    assert light["day"] > 1.4 * light["dusk"]
    assert light["dusk"] > light["night"] > light["deep_night"]


@pytest.mark.slow
def test_crowded_has_more_vehicles_and_hides_more() -> None:
    def last(*, crowded: bool) -> list[Truth]:
        return [t for s in (21, 22) for t in next(render_clip(ClipSpec(s, "day", 1, crowded=crowded)))[1]]

    crowd, ordinary = last(crowded=True), last(crowded=False)
    assert len(crowd) > 1.5 * len(ordinary)
    assert min(t.visible for t in crowd) < 0.8


def test_what_is_hidden_or_tiny_is_marked_to_be_ignored() -> None:
    seen = Counter[bool]()
    for _, truths in render_clip(ClipSpec(23, "day", 3, crowded=True)):
        for truth in truths:
            seen[truth.ignore] += 1
            size = min(truth.box[2] - truth.box[0], truth.box[3] - truth.box[1])
            assert truth.ignore == (truth.visible < 0.35 or size < MIN_VEHICLE_PX)
    assert seen[False] > 0


def test_data_sets_share_no_seed_and_the_shifted_ones_are_shifted() -> None:
    seeds = [spec.seed for data_set in DATA_SETS.values() for spec in data_set.clips()]
    assert len(seeds) == len(set(seeds))
    assert sum(spec.num_frames for spec in DATA_SETS["validation"].clips()) >= 600
    assert {spec.condition for spec in DATA_SETS["validation"].clips()} == {"day", "dusk", "rain", "night"}
    learnt = {(spec.condition, spec.crowded) for spec in DATA_SETS["train"].clips()}
    assert learnt.isdisjoint({(spec.condition, spec.crowded) for spec in DATA_SETS["night"].clips()})
    assert learnt.isdisjoint({(spec.condition, spec.crowded) for spec in DATA_SETS["crowded"].clips()})


@pytest.mark.parametrize("name", sorted(CONDITIONS))
def test_every_condition_renders(name: str) -> None:
    frame, _ = next(render_clip(ClipSpec(seed=31, condition=name, num_frames=1)))
    assert frame.std() > 3
