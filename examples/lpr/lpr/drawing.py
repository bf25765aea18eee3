"""Draws a vehicle: converts a body, a place and a camera to flat polygons in painting order.

World axes in metres: X right, Y along the road away from the camera, Z up. A body's own axes: x from tail to nose,
y across, z up. This module does not know weather, other vehicles or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lpr.vehicles import BODIES, Colour, Vehicle

Points = NDArray[np.float64]


@dataclass(slots=True)
class Camera:
    """A pinhole camera `height_m` above the road, looking along +Y, down by `pitch`, aside by `yaw`, radians."""

    height_m: float
    pitch: float
    yaw: float
    roll: float
    focal_px: float
    width: int
    height: int
    rotation: Points = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compose the rotation from world axes to right, down, forward."""
        cp, sp, cy, sy, cr, sr = (f(a) for a in (self.pitch, self.yaw, self.roll) for f in (np.cos, np.sin))
        look = np.array([[cy, -sy, 0.0], [sp * -sy, sp * -cy, -cp], [cp * sy, cp * cy, -sp]])
        roll = np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]])
        self.rotation = roll @ look

    def project(self, points_N3: Points) -> Points:
        """Project world points to pixels (N, 2); points at or behind the camera are clamped to 0.3 m in front of it."""
        seen = (points_N3 - (0.0, 0.0, self.height_m)) @ self.rotation.T
        depth = np.maximum(seen[:, 2:3], 0.3)
        return seen[:, :2] * (self.focal_px / depth) + (self.width / 2, self.height / 2)


@dataclass(slots=True)
class Polygon:
    """A flat patch.

    Attributes:
        points: outline in pixels (N, 2).
        colour: 0 to 255.
        shine: light that it emits, 0 to 1.
        outline: whether it is part of the vehicle's outline.
    """

    points: Points
    colour: Colour
    shine: float = 0.0
    outline: bool = False


@dataclass(slots=True)
class Lamp:
    """A light that glows in the dark: centre in pixels, radius in pixels, colour."""

    centre: tuple[float, float]
    radius: float
    colour: Colour


@dataclass(slots=True)
class Drawing:
    """A drawn vehicle: polygons in painting order, its plate's corners (4, 2) clockwise from top left, its lamps."""

    polygons: list[Polygon]
    plate: Points
    lamps: list[Lamp]
    footprint: Points


class _Painter:
    """Collects the polygons of one vehicle at one moment."""

    def __init__(self, vehicle: Vehicle, camera: Camera, *, y: float, sun: Points, ambient: float) -> None:
        self.body = BODIES[vehicle.kind]
        self.vehicle = vehicle
        self.camera = camera
        self.size = np.array(self.body.size_m) * vehicle.scale
        self.direction = 1.0 if vehicle.speed >= 0 else -1.0
        self.origin = np.array([vehicle.lane_x, y, 0.0])
        self.eye = self._to_local(np.array([0.0, 0.0, camera.height_m]))
        self.sun = np.array([sun[1] * self.direction, sun[0] * self.direction, sun[2]])
        self.ambient = ambient
        self.polygons: list[Polygon] = []

    def _to_local(self, world: Points) -> Points:
        x, y, z = world - self.origin
        return np.array([y * self.direction + self.size[0] / 2, x * self.direction, z])

    def pixels(self, local_N3: Points) -> Points:
        """Convert the body's own axes to pixels."""
        world = np.stack(
            [local_N3[:, 1] * self.direction, (local_N3[:, 0] - self.size[0] / 2) * self.direction, local_N3[:, 2]],
            axis=1,
        )
        return self.camera.project(world + self.origin)

    def shade(self, colour: Colour, normal: Points) -> Colour:
        """Shade a colour by Lambert's law with an ambient part."""
        light = (
            self.ambient + (1.0 - self.ambient) * max(0.0, float(normal @ self.sun)) + 0.10 * max(0.0, float(normal[2]))
        )
        return (min(colour[0] * light, 255.0), min(colour[1] * light, 255.0), min(colour[2] * light, 255.0))

    def add(self, local_N3: Points, colour: Colour, *, shine: float = 0.0, outline: bool = False) -> None:
        """Draw one polygon given in the body's own axes."""
        self.polygons.append(Polygon(self.pixels(local_N3), colour, shine, outline))


@dataclass(slots=True)
class _Face:
    """One strip of the body across its width: lower and upper edge, outward normal."""

    name: str
    low: Points
    high: Points
    half_low: float
    half_high: float
    normal: Points

    def at(self, u: float, v: float) -> Points:
        """Return the point at `u` (-1 to 1 across) and `v` (0 low to 1 high)."""
        middle = self.low + (self.high - self.low) * v
        half = self.half_low + (self.half_high - self.half_low) * v
        return middle + np.array([0.0, u * half, 0.0]) + self.normal * 0.01

    def patch(self, u0: float, u1: float, v0: float, v1: float) -> Points:
        """Return the corners of a rectangle on the face."""
        return np.array([self.at(u0, v0), self.at(u1, v0), self.at(u1, v1), self.at(u0, v1)])


def _faces(painter: _Painter) -> list[_Face]:
    length, width, height = painter.size
    faces = list[_Face]()
    profile = painter.body.profile
    for (x0, z0, w0, name), (x1, z1, w1, _) in pairwise(profile):
        low, high = np.array([x0 * length, 0.0, z0 * height]), np.array([x1 * length, 0.0, z1 * height])
        run = high - low
        normal = np.array([-run[2], 0.0, run[0]])
        normal /= max(float(np.linalg.norm(normal)), 1e-9)
        faces.append(_Face(name, low, high, w0 * width / 2, w1 * width / 2, normal))
    return faces


_GLASS: Colour = (52, 62, 74)
_DARK: Colour = (26, 26, 28)


def draw_vehicle(
    vehicle: Vehicle, camera: Camera, *, y: float, sun: Points, ambient: float, lights_on: float
) -> Drawing:
    """Draw `vehicle` with its middle at `y` metres along the road.

    Args:
        vehicle: the vehicle.
        camera: the camera.
        y: place along the road, metres.
        sun: unit vector towards the sun.
        ambient: share of light without direction.
        lights_on: brightness of the lamps, 0 (off) to 1.
    """
    painter = _Painter(vehicle, camera, y=y, sun=sun, ambient=ambient)
    faces = _faces(painter)
    tail_view = painter.direction > 0
    _draw_running_gear(painter)
    for side in sorted((-1.0, 1.0), key=lambda side: side * float(painter.eye[1])):
        _draw_side(painter, side)
        if side * painter.eye[1] > painter.size[1] / 2:
            _draw_wheels(painter, side)
    ordered = list(reversed(faces)) if tail_view else faces
    lamps = list[Lamp]()
    for face in ordered:
        if float(face.normal @ (painter.eye - face.low)) > 0:
            _draw_face(painter, face)
            lamps += _draw_lamps(painter, face, lights_on=lights_on)
    plate = _plate_corners(painter, faces, tail_view=tail_view)
    length, width, _ = painter.size
    ground = np.array([[0, -width / 2, 0], [length, -width / 2, 0], [length, width / 2, 0], [0, width / 2, 0]])
    shift = np.array([-painter.sun[0], -painter.sun[1], 0.0]) * (painter.size[2] * 0.5 / max(float(sun[2]), 0.25))
    return Drawing(painter.polygons, plate, lamps, painter.pixels(np.concatenate([ground, ground + shift])))


def _draw_running_gear(painter: _Painter) -> None:
    """Draw the tyres from behind or in front, and the dark space under the body."""
    length, width, height = painter.size
    clearance = painter.body.profile[0][1] * height
    end = 0.06 * length if painter.direction > 0 else 0.94 * length
    under = np.array(
        [
            [end, -0.44 * width, 0.1],
            [end, 0.44 * width, 0.1],
            [end, 0.44 * width, clearance * 1.3],
            [end, -0.44 * width, clearance * 1.3],
        ]
    )
    painter.add(under, (16, 16, 17), outline=True)
    axle = 0.17 * length if painter.direction > 0 else 0.83 * length
    for side in (-1.0, 1.0):
        a, b = side * 0.32 * width, side * 0.47 * width
        painter.add(
            np.array([[axle, a, 0.0], [axle, b, 0.0], [axle, b, clearance * 1.4], [axle, a, clearance * 1.4]]),
            _DARK,
            outline=True,
        )


def _width_at(profile: Sequence[tuple[float, float, float, str]], z: float) -> float:
    """Return the share of the half width at a share of the height, for points on the side."""
    ordered = sorted((point[1], point[2]) for point in profile)
    return float(np.interp(z, [p[0] for p in ordered], [p[1] for p in ordered]))


def _draw_side(painter: _Painter, side: float) -> None:
    """Draw one side. Of the far side only the inclined windows stay visible from above; later faces cover the rest."""
    length, width, height = painter.size
    profile = painter.body.profile
    normal = np.array([0.0, side, 0.0])
    outline = np.array([[x * length, side * w * width / 2, z * height] for x, z, w, _ in profile])
    painter.add(outline, painter.shade(painter.vehicle.paint, normal), outline=True)
    sill = np.array(
        [
            [x * length, side * 0.985 * width / 2, z * height]
            for x, z in ((0.02, 0.17), (0.98, 0.17), (0.98, 0.24), (0.02, 0.24))
        ]
    )
    painter.add(sill, painter.shade(_DARK, normal))
    glass = painter.shade(_tinted(painter.vehicle.tint), normal)
    for window in painter.body.windows:
        points = np.array(
            [[x * length, side * (_width_at(profile, z) + 0.005) * width / 2, z * height] for x, z in window]
        )
        painter.add(points, glass)


def _draw_wheels(painter: _Painter, side: float) -> None:
    length, width, _ = painter.size
    normal = np.array([0.0, side, 0.0])
    radius = 0.335 * painter.vehicle.scale if length < 6 else 0.48
    angles = np.linspace(0, 2 * np.pi, 15)[:-1]
    for x in (0.17, 0.81):
        for factor, colour in ((1.12, (14, 14, 15)), (1.0, _DARK), (0.6, (128, 130, 134))):
            ring = np.stack(
                [
                    x * length + factor * radius * np.cos(angles),
                    np.full(14, side * 0.99 * width / 2),
                    radius + factor * radius * np.sin(angles),
                ],
                axis=1,
            )
            ring[:, 2] = np.maximum(ring[:, 2], 0.0)
            painter.add(ring, painter.shade(colour, normal), outline=factor == 1.0)


def _tinted(tint: float) -> Colour:
    return (_GLASS[0] * (1 - 0.6 * tint), _GLASS[1] * (1 - 0.6 * tint), _GLASS[2] * (1 - 0.6 * tint))


def _draw_face(painter: _Painter, face: _Face) -> None:
    paint = painter.vehicle.paint
    shaded = painter.shade(paint, face.normal)
    name = face.name
    dark_bumper = painter.vehicle.scale < 0.98 or painter.size[2] > 2.0
    if name.endswith("bumper") and dark_bumper:
        shaded = painter.shade((58, 60, 62), face.normal)
    painter.add(face.patch(-1, 1, 0, 1), shaded, outline=True)
    if name in ("rear_glass", "windscreen"):
        painter.add(face.patch(-0.9, 0.9, 0.1, 0.93), painter.shade(_tinted(painter.vehicle.tint), face.normal))
        painter.add(face.patch(-0.85, 0.85, 0.62, 0.9), painter.shade((96, 110, 124), face.normal))
    elif name == "bed":
        painter.add(face.patch(-0.86, 0.86, 0.04, 0.97), painter.shade((30, 30, 32), face.normal))
    elif name == "cargo_rear":
        for u in (-0.96, -0.02, 0.92):
            painter.add(face.patch(u, u + 0.04, 0.02, 0.98), painter.shade((90, 90, 92), face.normal))
        painter.add(face.patch(-0.6, 0.6, 0.5, 0.72), painter.shade((paint[2], paint[0], paint[1]), face.normal))
    elif name == "front":
        painter.add(face.patch(-0.5, 0.5, 0.15, 0.75), painter.shade((34, 35, 38), face.normal))
    elif name.endswith("bumper"):
        painter.add(face.patch(-0.8, 0.8, 0.02, 0.2), painter.shade((30, 30, 32), face.normal))
    elif name == "hood":
        for u in (-0.55, 0.53):
            painter.add(
                face.patch(u, u + 0.02, 0.05, 0.95),
                painter.shade((paint[0] * 0.8, paint[1] * 0.8, paint[2] * 0.8), face.normal),
            )


def _draw_lamps(painter: _Painter, face: _Face, *, lights_on: float) -> list[Lamp]:
    """Draw the tail lamps or headlamps on the face that has them."""
    tail = face.name == painter.body.glow_rear
    if not tail and face.name != painter.body.glow_front:
        return []
    off: Colour = (120, 22, 22) if tail else (196, 200, 206)
    on: Colour = (250, 40, 34) if tail else (255, 250, 232)
    r, g, b = (dark + (bright - dark) * lights_on for dark, bright in zip(off, on, strict=True))
    colour = (r, g, b)
    lamps = list[Lamp]()
    for u in (-0.96, 0.66):
        painter.add(
            face.patch(u, u + 0.30, 0.25, 0.88),
            painter.shade(colour, face.normal) if lights_on < 0.1 else colour,
            shine=0.9 * lights_on,
        )
        if lights_on > 0.1:
            ends = painter.pixels(np.array([face.at(u, 0.55), face.at(u + 0.30, 0.55)]))
            centre = ends.mean(axis=0)
            radius = float(np.linalg.norm(ends[1] - ends[0])) * (1.1 if tail else 2.2)
            lamps.append(Lamp((float(centre[0]), float(centre[1])), radius, on))
    return lamps


def _plate_corners(painter: _Painter, faces: Sequence[_Face], *, tail_view: bool) -> Points:
    """Draw the plate's frame; return its corners in pixels as seen: top left, top right, bottom right, bottom left."""
    name, v = painter.body.plate_rear if tail_view else painter.body.plate_front
    face = next(face for face in faces if face.name == name)
    up = face.high - face.low
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    if not tail_view:
        up = -up
        v = 1 - v
    width, height = painter.vehicle.plate.size_m
    centre = face.low + (face.high - face.low) * v + face.normal * 0.03
    across = np.array([0.0, painter.direction * width / 2, 0.0])
    rise = up * (height / 2)
    corners = np.array([centre - across + rise, centre + across + rise, centre + across - rise, centre - across - rise])
    frame = np.array(
        [
            centre - across * 1.06 + rise * 1.2,
            centre + across * 1.06 + rise * 1.2,
            centre + across * 1.06 - rise * 1.2,
            centre - across * 1.06 - rise * 1.2,
        ]
    )
    painter.add(frame, _DARK)
    return painter.pixels(corners)
