"""Renders clips of traffic with ground truth: a road, a camera, vehicles on lanes, light and weather.

The `ClipSpec` with its seed determines everything. Frames are uint8 (H, W, 3), RGB; boxes are x0, y0, x1, y1 in pixels.
This module does not know video files or models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lpr.composing import Stage, Truth
from lpr.conditions import CONDITIONS, Develop, draw_weather
from lpr.drawing import Camera, draw_vehicle
from lpr.plates import plate_texture, random_style, random_text
from lpr.road import HEIGHT, WIDTH, Road, draw_background
from lpr.vehicles import BODIES, BODY_WEIGHTS, PAINTS, Vehicle

FPS = 10
MAX_ORDINARY = 8
"""Most vehicles in view at once in a clip that is not crowded."""


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """The settings of one clip.

    Attributes:
        seed: determines everything that the other fields do not.
        condition: key of `CONDITIONS`.
        num_frames: length in frames.
        crowded: True for many vehicles close together.
        renew_text: True gives every vehicle a new plate in every frame, for variety in training.
    """

    seed: int
    condition: str
    num_frames: int
    crowded: bool = False
    renew_text: bool = False


def render_clip(spec: ClipSpec) -> Iterator[tuple[NDArray[np.uint8], list[Truth]]]:
    """Render the frames of `spec` one by one."""
    rng = np.random.default_rng(spec.seed)
    weather = draw_weather(CONDITIONS[spec.condition], rng)
    road = Road.draw(rng, crowded=spec.crowded)
    vehicles = _traffic(road, rng, duration_s=spec.num_frames / FPS, crowded=spec.crowded)
    background = draw_background(road, rng)
    develop = Develop(weather, rng, width=WIDTH, height=HEIGHT)
    textures = dict[int, Image.Image]()
    for number in range(spec.num_frames):
        stage = Stage(background.copy(), weather)
        for vehicle in sorted(vehicles, key=lambda v: -_place(v, number / FPS)):
            y = _place(vehicle, number / FPS)
            if not road.in_view(y):
                continue
            if spec.renew_text:
                vehicle.plate = random_style(rng)
                vehicle.text = random_text(rng, lines=vehicle.plate.lines)
            if spec.renew_text or vehicle.track not in textures:
                textures[vehicle.track] = plate_texture(vehicle.text, vehicle.plate, rng=rng)
            drawing = draw_vehicle(
                vehicle, road.camera, y=y, sun=weather.sun, ambient=weather.ambient, lights_on=weather.lights
            )
            motion = blur_px(vehicle, road.camera, y=y, exposure_s=weather.exposure_s)
            stage.put(vehicle, drawing, textures[vehicle.track], motion=motion)
        yield develop(stage.canvas, stage.shine, stage.lamps()), stage.truths()


def blur_px(vehicle: Vehicle, camera: Camera, *, y: float, exposure_s: float) -> tuple[float, float]:
    """Return how far the vehicle's middle moves in the image while the shutter is open: x and y, pixels."""
    here = np.array([[vehicle.lane_x, y, 0.6], [vehicle.lane_x, y + vehicle.speed * exposure_s, 0.6]])
    a, b = camera.project(here)
    return float(b[0] - a[0]), float(b[1] - a[1])


def _place(vehicle: Vehicle, time_s: float) -> float:
    return vehicle.start_y + vehicle.speed * time_s


def _traffic(road: Road, rng: np.random.Generator, *, duration_s: float, crowded: bool) -> list[Vehicle]:
    """Return vehicles for every lane and the whole duration, with gaps between them."""
    vehicles = list[Vehicle]()
    kinds, weights = list(BODY_WEIGHTS), np.array(list(BODY_WEIGHTS.values()))
    busy = 1.0 if crowded else float(rng.choice([0.25, 0.5, 1.0]))
    for lane_x, speed in road.lanes:
        travel = abs(speed) * duration_s
        y = road.near_y - 5 - (travel if speed > 0 else 0) + rng.uniform(0, 8)
        end = road.far_y + 3 + (travel if speed < 0 else 0)
        while y < end:
            kind = str(rng.choice(kinds, p=weights / weights.sum()))
            plate = random_style(rng)
            vehicle = Vehicle(
                track=len(vehicles),
                kind=kind,
                paint=PAINTS[int(rng.integers(len(PAINTS)))],
                scale=float(rng.uniform(0.93, 1.07)),
                lane_x=lane_x + float(rng.uniform(-0.35, 0.35)),
                start_y=y + BODIES[kind].size_m[0] / 2,
                speed=speed,
                text=random_text(rng, lines=plate.lines),
                plate=plate,
                tint=float(rng.random()),
            )
            y += vehicle.length_m + float(rng.uniform(1.2, 2.5) if crowded else rng.uniform(2.5, 6.0) / busy)
            vehicles.append(vehicle)
    return vehicles if crowded else _thinned(vehicles, road, duration_s=duration_s)


def _thinned(vehicles: Sequence[Vehicle], road: Road, *, duration_s: float) -> list[Vehicle]:
    """Leave out vehicles so that at most `MAX_ORDINARY` are in view at once."""
    times = np.arange(0.0, duration_s, 1.0 / FPS)
    present = np.zeros(len(times), dtype=np.int64)
    kept = list[Vehicle]()
    for vehicle in vehicles:
        here = road.in_view(vehicle.start_y + vehicle.speed * times)
        if (present + here).max(initial=0) <= MAX_ORDINARY:
            present += here
            kept.append(vehicle)
    return kept
