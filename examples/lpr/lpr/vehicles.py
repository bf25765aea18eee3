"""Types of vehicles as extruded side profiles, and single vehicles with their paint and plate."""

from dataclasses import dataclass

import numpy as np

from lpr.plates import PlateStyle

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Body:
    """A type of vehicle.

    Attributes:
        size_m: length, width, height.
        profile: side outline from tail bottom over the roof to nose bottom: share of length, share of height, share
            of half the width, and the name of the face that starts there.
        windows: side windows as outlines in shares of length and height.
        plate_rear, plate_front: face with the plate, and the plate's height on it (0 bottom, 1 top).
        glow_rear, glow_front: face with the lamps.
    """

    size_m: tuple[float, float, float]
    profile: tuple[tuple[float, float, float, str], ...]
    windows: tuple[tuple[tuple[float, float], ...], ...]
    plate_rear: tuple[str, float]
    plate_front: tuple[str, float]
    glow_rear: str = "rear"
    glow_front: str = "front"


BODIES: dict[str, Body] = {
    "sedan": Body(
        (4.5, 1.80, 1.45),
        (
            (0.00, 0.18, 0.92, "rear_bumper"),
            (0.00, 0.44, 1.00, "rear"),
            (0.015, 0.68, 0.97, "trunk"),
            (0.15, 0.72, 0.95, "rear_glass"),
            (0.29, 0.98, 0.76, "roof"),
            (0.55, 1.00, 0.77, "windscreen"),
            (0.72, 0.69, 0.95, "hood"),
            (0.96, 0.57, 0.95, "front"),
            (1.00, 0.38, 0.98, "front_bumper"),
            (0.99, 0.16, 0.92, ""),
        ),
        (
            ((0.20, 0.72), (0.31, 0.93), (0.42, 0.95), (0.42, 0.72)),
            ((0.44, 0.72), (0.44, 0.95), (0.55, 0.95), (0.68, 0.72)),
        ),
        ("rear", 0.45),
        ("front_bumper", 0.55),
    ),
    "hatchback": Body(
        (4.0, 1.76, 1.50),
        (
            (0.01, 0.18, 0.92, "rear_bumper"),
            (0.00, 0.42, 1.00, "rear"),
            (0.02, 0.66, 0.97, "rear_glass"),
            (0.13, 0.96, 0.78, "roof"),
            (0.52, 1.00, 0.78, "windscreen"),
            (0.72, 0.70, 0.95, "hood"),
            (0.96, 0.58, 0.95, "front"),
            (1.00, 0.38, 0.98, "front_bumper"),
            (0.99, 0.16, 0.92, ""),
        ),
        (
            ((0.12, 0.70), (0.17, 0.92), (0.37, 0.95), (0.37, 0.70)),
            ((0.39, 0.70), (0.39, 0.95), (0.52, 0.95), (0.67, 0.70)),
        ),
        ("rear", 0.4),
        ("front_bumper", 0.5),
    ),
    "suv": Body(
        (4.7, 1.92, 1.75),
        (
            (0.00, 0.22, 0.94, "rear_bumper"),
            (0.00, 0.42, 1.00, "rear"),
            (0.02, 0.64, 0.98, "rear_glass"),
            (0.09, 0.95, 0.82, "roof"),
            (0.58, 1.00, 0.82, "windscreen"),
            (0.72, 0.70, 0.96, "hood"),
            (0.97, 0.62, 0.96, "front"),
            (1.00, 0.40, 0.98, "front_bumper"),
            (0.99, 0.20, 0.94, ""),
        ),
        (
            ((0.08, 0.67), (0.12, 0.91), (0.28, 0.93), (0.28, 0.67)),
            ((0.30, 0.67), (0.30, 0.93), (0.44, 0.94), (0.44, 0.67)),
            ((0.46, 0.67), (0.46, 0.94), (0.58, 0.94), (0.69, 0.67)),
        ),
        ("rear", 0.35),
        ("front_bumper", 0.6),
    ),
    "van": Body(
        (5.2, 1.98, 2.25),
        (
            (0.00, 0.16, 0.96, "rear_bumper"),
            (0.00, 0.28, 1.00, "rear"),
            (0.00, 0.60, 0.99, "rear_glass"),
            (0.02, 0.92, 0.94, "roof_edge"),
            (0.04, 1.00, 0.90, "roof"),
            (0.72, 1.00, 0.90, "windscreen"),
            (0.86, 0.62, 0.97, "hood"),
            (0.98, 0.48, 0.97, "front"),
            (1.00, 0.28, 0.98, "front_bumper"),
            (0.99, 0.12, 0.94, ""),
        ),
        (((0.66, 0.62), (0.66, 0.92), (0.73, 0.92), (0.83, 0.62)),),
        ("rear", 0.3),
        ("front_bumper", 0.6),
    ),
    "pickup": Body(
        (5.3, 1.94, 1.80),
        (
            (0.00, 0.24, 0.94, "rear_bumper"),
            (0.00, 0.38, 1.00, "rear"),
            (0.00, 0.62, 1.00, "bed"),
            (0.38, 0.62, 0.98, "rear_glass"),
            (0.41, 0.97, 0.80, "roof"),
            (0.60, 1.00, 0.80, "windscreen"),
            (0.73, 0.68, 0.96, "hood"),
            (0.97, 0.62, 0.97, "front"),
            (1.00, 0.40, 0.98, "front_bumper"),
            (0.99, 0.22, 0.94, ""),
        ),
        (
            ((0.43, 0.66), (0.44, 0.92), (0.52, 0.93), (0.52, 0.66)),
            ((0.54, 0.66), (0.54, 0.93), (0.60, 0.93), (0.70, 0.66)),
        ),
        ("rear", 0.35),
        ("front_bumper", 0.6),
    ),
    "truck": Body(
        (7.8, 2.40, 3.20),
        (
            (0.00, 0.14, 0.90, "rear_bumper"),
            (0.00, 0.28, 0.92, "cargo_rear"),
            (0.00, 1.00, 1.00, "cargo_top"),
            (0.74, 1.00, 1.00, "cargo_front"),
            (0.745, 0.80, 0.92, "roof"),
            (0.93, 0.79, 0.90, "windscreen"),
            (0.98, 0.50, 0.95, "front"),
            (1.00, 0.24, 0.97, "front_bumper"),
            (1.00, 0.10, 0.94, ""),
        ),
        (((0.82, 0.50), (0.82, 0.74), (0.92, 0.74), (0.96, 0.50)),),
        ("rear_bumper", 0.45),
        ("front_bumper", 0.6),
        glow_rear="rear_bumper",
    ),
    "bus": Body(
        (9.5, 2.45, 3.05),
        (
            (0.00, 0.12, 0.96, "rear_bumper"),
            (0.00, 0.26, 1.00, "rear"),
            (0.00, 0.56, 1.00, "rear_glass"),
            (0.005, 0.90, 0.98, "roof_edge"),
            (0.02, 1.00, 0.92, "roof"),
            (0.96, 1.00, 0.92, "roof_edge"),
            (0.975, 0.92, 0.98, "windscreen"),
            (1.00, 0.45, 1.00, "front"),
            (1.00, 0.22, 1.00, "front_bumper"),
            (1.00, 0.10, 0.97, ""),
        ),
        tuple(((x, 0.52), (x, 0.88), (x + 0.105, 0.88), (x + 0.105, 0.52)) for x in np.arange(0.04, 0.90, 0.125)),
        ("rear", 0.3),
        ("front_bumper", 0.6),
    ),
}
BODY_WEIGHTS = {"sedan": 0.27, "hatchback": 0.24, "suv": 0.2, "van": 0.11, "pickup": 0.07, "truck": 0.07, "bus": 0.04}
PAINTS: tuple[Colour, ...] = (
    (228, 230, 232), (186, 190, 194), (120, 124, 130), (62, 66, 72), (28, 30, 34), (150, 26, 30), (30, 56, 120),
    (70, 110, 160), (34, 84, 60), (196, 168, 120), (206, 120, 36), (214, 190, 60), (98, 60, 42), (110, 44, 90),
)  # fmt: skip


@dataclass(slots=True)
class Vehicle:
    """One vehicle; it does not change over its track.

    Attributes:
        track: number of its track, unique in its video.
        kind: key of `BODIES`.
        paint: body colour.
        scale: factor on the body's size.
        lane_x: position across the road, metres.
        start_y: position along the road at time 0, metres.
        speed: metres per second along Y; negative is towards the camera.
        text: plate text in the form of `plates.random_text`.
        plate: its plate's style.
        tint: darkness of the windows, 0 to 1.
    """

    track: int
    kind: str
    paint: Colour
    scale: float
    lane_x: float
    start_y: float
    speed: float
    text: str
    plate: PlateStyle
    tint: float

    @property
    def length_m(self) -> float:
        """Length of the vehicle."""
        return BODIES[self.kind].size_m[0] * self.scale
