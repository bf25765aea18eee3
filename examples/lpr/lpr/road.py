"""Draws the empty road: the camera's place, the lanes, the ground and the barriers."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from lpr.drawing import Camera, Points

WIDTH, HEIGHT = 768, 432
LANE_M = 3.4


@dataclass(slots=True)
class Road:
    camera: Camera
    lanes: list[tuple[float, float]]
    """Centre and speed of each lane; a negative speed leads towards the camera."""
    near_y: float
    far_y: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, crowded: bool) -> "Road":
        focal = rng.uniform(850, 1150) if crowded else rng.uniform(1050, 1750)
        height = rng.uniform(5.0, 7.5)
        near = rng.uniform(8.5, 11.5)
        half = np.arctan(HEIGHT / 2 / focal)
        pitch = np.arctan(height / near) - half
        yaw = rng.uniform(-0.22, 0.22) * focal / 1600
        far = min(height / np.tan(max(pitch - half, 0.06)), 32.0)
        camera = Camera(height, pitch, yaw, rng.uniform(-0.03, 0.03), focal, WIDTH, HEIGHT)
        number = 4 if crowded else int(rng.integers(2, 5))
        middle = np.tan(yaw) * (0.6 * near + 0.4 * far) + rng.uniform(-0.8, 0.8)
        receding = int(rng.integers(0, number + 1))
        speeds = [float(rng.uniform(3.0, 9.0)) * (0.5 if crowded else 1.0) for _ in range(number)]
        lanes = [
            (middle + (i - (number - 1) / 2) * LANE_M, speeds[i] if i >= number - receding else -speeds[i])
            for i in range(number)
        ]
        return cls(camera, lanes, near, far)

    def in_view(self, y: float | Points) -> Any:
        """Return whether a vehicle at `y` is in view."""
        return (self.near_y - 5 < y) & (y < self.far_y + 3)


def draw_background(road: Road, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw the empty road in full light, float32 (H, W, 3): asphalt, lines, verges, repairs, barriers."""
    camera = road.camera
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    rays = np.stack([(u - WIDTH / 2) / camera.focal_px, (v - HEIGHT / 2) / camera.focal_px, np.ones_like(u)], axis=-1)
    world = rays @ camera.rotation
    scale = camera.height_m / np.maximum(-world[..., 2], 1e-3)
    x, y = world[..., 0] * scale, world[..., 1] * scale
    ground = world[..., 2] < -0.02
    left = road.lanes[0][0] - LANE_M / 2 - 0.3
    right = road.lanes[-1][0] + LANE_M / 2 + 0.3
    asphalt = rng.uniform(80, 145) * np.array([1.0, 1.0, rng.uniform(0.98, 1.05)])
    verge = np.array(rng.choice([(96, 108, 72), (122, 116, 92), (138, 136, 130), (84, 96, 66)]), dtype=np.float64)
    on_road = _soft(x - left) * _soft(right - x)
    image = verge + on_road[..., None] * (asphalt - verge)
    image *= 1.0 + _ground_texture(x, y, rng)[..., None] * (0.07 + 0.10 * (1 - on_road[..., None]))
    for _ in range(int(rng.integers(0, 5))):
        image *= 1.0 - rng.uniform(0.08, 0.3) * _patch(x, y, left=left, right=right, road=road, rng=rng)[..., None]
    lines = _road_lines(x, y, road, left=left, right=right, phase=rng.uniform(0, 6))
    image += (np.array([222, 222, 214]) - image) * (rng.uniform(0.5, 0.95) * lines)[..., None]
    sky = np.linspace(1.0, 0.8, HEIGHT)[:, None, None] * np.array([178, 196, 214])
    image = np.where(ground[..., None], image, sky)
    canvas = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    _draw_barriers(ImageDraw.Draw(canvas), road, (left - rng.uniform(0.5, 1.5), right + rng.uniform(0.5, 1.5)), rng)
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32)


def _soft(distance_m: NDArray[np.float64], edge_m: float = 0.04) -> NDArray[np.float64]:
    """Return 0 outside, 1 inside, and a soft edge between."""
    return np.clip(distance_m / edge_m + 0.5, 0.0, 1.0)


def _ground_texture(x: NDArray[np.float64], y: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise on the ground at a coarse and a fine scale, about -1 to 1."""
    bank = rng.standard_normal((256, 256))
    total = np.zeros_like(x)
    for cell_m, weight in ((1.1, 0.7), (0.21, 0.4), (0.05, 0.35)):
        row, column = y / cell_m, x / cell_m
        r0, c0 = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
        fr, fc = row - r0, column - c0
        r0, c0, r1, c1 = r0 % 256, c0 % 256, (r0 + 1) % 256, (c0 + 1) % 256
        upper = bank[r0, c0] * (1 - fc) + bank[r0, c1] * fc
        total += weight * (upper * (1 - fr) + (bank[r1, c0] * (1 - fc) + bank[r1, c1] * fc) * fr)
    return total


def _patch(
    x: NDArray[np.float64], y: NDArray[np.float64], *, left: float, right: float, road: Road, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the mask of a rectangle of newer asphalt."""
    x0, y0 = rng.uniform(left, right - 1), rng.uniform(road.near_y, road.far_y)
    w, h = rng.uniform(0.3, 2.5), rng.uniform(0.5, 6)
    return _soft(x - x0) * _soft(x0 + w - x) * _soft(y - y0) * _soft(y0 + h - y)


def _road_lines(
    x: NDArray[np.float64], y: NDArray[np.float64], road: Road, *, left: float, right: float, phase: float
) -> NDArray[np.float64]:
    """Return the mask of edge lines, dashed lane lines, and a double line between directions."""
    lines = _soft(0.07 - np.abs(x - left - 0.2)) + _soft(0.07 - np.abs(x - right + 0.2))
    dash = _soft(((y + phase) % 6.0) - 3.0) * _soft(6.0 - ((y + phase) % 6.0))
    for (a, speed_a), (b, speed_b) in pairwise(road.lanes):
        middle = (a + b) / 2
        if speed_a * speed_b < 0:
            lines = lines + _soft(0.06 - np.abs(x - middle - 0.12)) + _soft(0.06 - np.abs(x - middle + 0.12))
        else:
            lines = lines + dash * _soft(0.06 - np.abs(x - middle))
    return np.clip(lines, 0.0, 1.0)


def _draw_barriers(
    draw: ImageDraw.ImageDraw, road: Road, places_x: tuple[float, float], rng: np.random.Generator
) -> None:
    """Draw guard rails with posts; each side has them with a probability of 0.6."""
    for x in places_x:
        if rng.random() < 0.4:
            continue
        for y in np.arange(2.0, 60.0, 2.0):
            post = road.camera.project(np.array([[x, y, 0.0], [x + 0.1, y, 0.0], [x + 0.1, y, 0.7], [x, y, 0.7]]))
            draw.polygon([tuple(p) for p in post], fill=(96, 98, 100))
        for low, high, grey in ((0.42, 0.56, 150), (0.56, 0.72, 176)):
            rail = road.camera.project(np.array([[x, 1.5, low], [x, 70.0, low], [x, 70.0, high], [x, 1.5, high]]))
            draw.polygon([tuple(p) for p in rail], fill=(grey, grey + 2, grey + 4))
