"""The near one of two vehicles on a lane hides the far one."""

import numpy as np
import pytest
from lpr.composing import Stage, Truth
from lpr.conditions import CONDITIONS, draw_weather
from lpr.drawing import Camera, draw_vehicle
from lpr.plates import PlateStyle, plate_texture
from lpr.road import HEIGHT, WIDTH
from lpr.vehicles import Vehicle

CAMERA = Camera(6.0, 0.42, 0.0, 0.0, 1500.0, WIDTH, HEIGHT)
STYLE = PlateStyle(1, 0, 1, 0.15, 1.0, 0.0, band=False, separator=" ", dirt=0.0)


def vehicle(track: int, *, speed: float = 5.0) -> Vehicle:
    return Vehicle(track, "van", (200, 60, 60), 1.0, 0.0, 0.0, speed, "AB 123 CD", STYLE, 0.5)


def put(*places: tuple[Vehicle, float]) -> tuple[Stage, list[Truth]]:
    rng = np.random.default_rng(0)
    stage = Stage(np.full((HEIGHT, WIDTH, 3), 100, dtype=np.float32), draw_weather(CONDITIONS["day"], rng))
    for one, y in places:
        drawing = draw_vehicle(one, CAMERA, y=y, sun=np.array([0.0, 0.0, 1.0]), ambient=0.5, lights_on=0.0)
        stage.put(one, drawing, plate_texture(one.text, one.plate, rng=rng), motion=(0.0, 0.0))
    return stage, stage.truths()


def test_a_vehicle_alone_is_wholly_visible_and_its_plate_readable() -> None:
    stage, (truth,) = put((vehicle(1), 14.0))
    assert truth.visible == 1.0
    assert not truth.ignore
    assert truth.readable
    assert truth.text == "AB123CD"
    assert truth.plate_box is not None
    x0, y0, x1, y1 = (round(v) for v in truth.plate_box)
    plate = stage.canvas[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].mean()
    assert plate > stage.canvas[y0 : y1, x1 + 4 : x1 + 12].mean() + 40  # fmt: skip


def test_the_box_is_where_pixels_changed_colour() -> None:
    stage, (truth,) = put((vehicle(1), 14.0))
    red = stage.canvas[..., 0] > stage.canvas[..., 1] + 25
    rows, columns = np.nonzero(red)
    assert truth.box[0] == pytest.approx(columns.min(), abs=3)
    assert truth.box[2] == pytest.approx(columns.max() + 1, abs=3)
    assert truth.box[1] == pytest.approx(rows.min(), abs=3)
    assert truth.box[3] >= rows.max()


def test_a_nearer_vehicle_hides_the_far_ones_lower_part_and_plate() -> None:
    _, (alone,) = put((vehicle(1), 17.5))
    _, (far, near) = put((vehicle(1), 17.5), (vehicle(2), 11.8))
    assert near.visible == 1.0
    assert far.visible < 0.7
    assert far.box[3] < alone.box[3]
    assert alone.plate_box is not None
    assert far.plate_box is None
    assert not far.readable


def test_a_far_plate_is_found_but_not_readable() -> None:
    _, (truth,) = put((vehicle(1), 19.5))
    assert truth.plate_box is not None
    assert not truth.readable


def test_an_oncoming_vehicle_shows_its_plate_too_and_one_out_of_view_leaves_no_truth() -> None:
    _, (truth,) = put((vehicle(1, speed=-5.0), 14.0))
    assert truth.readable
    assert put((vehicle(1), 200.0))[1] == [] or put((vehicle(1), 200.0))[1][0].ignore
    assert put((vehicle(1), -30.0))[1] == []


def test_motion_smears_a_vehicle_along_its_way() -> None:
    rng = np.random.default_rng(0)
    still, smeared = (
        Stage(np.full((HEIGHT, WIDTH, 3), 100, np.float32), draw_weather(CONDITIONS["day"], rng)) for _ in "ab"
    )
    one = vehicle(1)
    drawing = draw_vehicle(one, CAMERA, y=14.0, sun=np.array([0.0, 0.0, 1.0]), ambient=0.5, lights_on=0.0)
    texture = plate_texture(one.text, one.plate, rng=rng)
    still.put(one, drawing, texture, motion=(0.0, 0.0))
    smeared.put(one, drawing, texture, motion=(0.0, 6.0))
    assert np.abs(np.diff(smeared.canvas, axis=0)).mean() < 0.8 * np.abs(np.diff(still.canvas, axis=0)).mean()


def test_a_smeared_vehicle_that_leaves_the_frame_does_not_come_back_on_the_other_side() -> None:
    rng = np.random.default_rng(0)
    stage = Stage(np.full((HEIGHT, WIDTH, 3), 100, np.float32), draw_weather(CONDITIONS["day"], rng))
    one = vehicle(1)
    drawing = draw_vehicle(one, CAMERA, y=8.5, sun=np.array([0.0, 0.0, 1.0]), ambient=0.5, lights_on=0.0)
    stage.put(one, drawing, plate_texture(one.text, one.plate, rng=rng), motion=(0.0, 6.0))
    (truth,) = stage.truths()
    assert truth.box[3] == HEIGHT
    above = stage.canvas[: int(truth.box[1]) - 5]
    assert (above[..., 0] <= above[..., 1] + 1).all()  # no red of the vehicle
