"""Puts drawn vehicles on the road, far ones first, and computes the visible part of each for the ground truth.

Images are float32 (H, W, ...), 0 to 255; boxes are x0, y0, x1, y1 in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from lpr.conditions import Weather
from lpr.drawing import Drawing, Lamp, Points
from lpr.plates import characters_of
from lpr.road import HEIGHT, WIDTH
from lpr.vehicles import Vehicle

MIN_VISIBLE = 0.35
"""A vehicle less visible than this, or smaller than `MIN_VEHICLE_PX`, is marked as ignored."""
MIN_VEHICLE_PX = 22.0
READABLE_PX_PER_CHARACTER = 6.0
"""A plate is readable when it is entirely in view and its characters are at least this many pixels apart."""

Box = tuple[float, float, float, float]
_SUPERSAMPLE = 2


@dataclass(slots=True)
class Truth:
    """One vehicle in one frame.

    Attributes:
        track: number of its track.
        kind: type of vehicle.
        box: box of its visible part.
        visible: share of its outline within the frame that no other vehicle hides.
        ignore: True when it is too hidden or too small for a detector.
        plate_box: its plate's box within the frame; None when hidden.
        text: the plate's characters.
        readable: whether a reader is expected to read the plate.
    """

    track: int
    kind: str
    box: Box
    visible: float
    ignore: bool
    plate_box: Box | None
    text: str
    readable: bool


class Stage:
    """A frame under construction: the canvas, the shine, and the vehicle that covers each pixel."""

    def __init__(self, canvas: NDArray[np.float32], weather: Weather) -> None:
        self.canvas = canvas
        self.shine = np.zeros(canvas.shape[:2], dtype=np.float32)
        self._lamps: list[tuple[Lamp, int]] = []
        self._weather = weather
        self._owner = np.zeros(canvas.shape[:2], dtype=np.uint8)
        self._cast: list[tuple[Vehicle, Points, int]] = []

    def put(self, vehicle: Vehicle, drawing: Drawing, texture: Image.Image, *, motion: tuple[float, float]) -> None:
        """Draw one vehicle over the earlier ones; call it from far to near."""
        outline = np.concatenate([p.points for p in drawing.polygons if p.outline])
        tile = _Tile.around(outline)
        if tile is None:
            return
        self._cast_shadow(drawing.footprint)
        tile.draw(drawing, texture, plate_light=self._weather.plate_light)
        colour, mask, shine = tile.finish(motion)
        rows, columns, inner = tile.place()
        alpha = mask[inner]
        self.canvas[rows, columns] = self.canvas[rows, columns] * (1 - alpha[..., None]) + colour[inner]
        self.shine[rows, columns] = self.shine[rows, columns] * (1 - alpha) + shine[inner]
        covered = alpha > 0.5
        if not covered.any():
            return
        number = len(self._cast) + 1
        self._owner[rows, columns][covered] = number
        self._cast.append((vehicle, drawing.plate, int(covered.sum())))
        self._lamps += [(lamp, number) for lamp in drawing.lamps]

    def lamps(self) -> list[Lamp]:
        """Return the lamps that no later vehicle hides."""
        seen = list[Lamp]()
        for lamp, owner in self._lamps:
            x, y = int(lamp.centre[0]), int(lamp.centre[1])
            if not (0 <= x < WIDTH and 0 <= y < HEIGHT) or self._owner[y, x] == owner:
                seen.append(lamp)
        return seen

    def _cast_shadow(self, footprint: Points) -> None:
        """Darken the ground under the body and in its shadow."""
        low = np.maximum(np.floor(footprint.min(axis=0)).astype(int) - 8, 0)
        high = np.minimum(np.ceil(footprint.max(axis=0)).astype(int) + 8, (WIDTH, HEIGHT))
        if (high - low).min() < 4:
            return
        width, height = (high - low).tolist()
        shadow = Image.new("L", (width // 2, height // 2))
        draw = ImageDraw.Draw(shadow)
        strength = int(255 * (0.55 - 0.3 * self._weather.ambient))
        corners = (footprint - low) / 2
        sides = [corners[[i, (i + 1) % 4, 4 + (i + 1) % 4, 4 + i]] for i in range(4)]
        for patch in (corners[:4], corners[4:], *sides):
            draw.polygon([tuple(p) for p in patch], fill=strength)
        soft = shadow.filter(ImageFilter.BoxBlur(2)).resize((width, height), Image.Resampling.BILINEAR)
        part = self.canvas[low[1] : high[1], low[0] : high[0]]
        part *= (1.0 - np.asarray(soft, dtype=np.float32) / 255.0)[..., None]

    def truths(self) -> list[Truth]:
        """Return the ground truth of all vehicles; call it after the last `put`."""
        found = list[Truth]()
        for index, (vehicle, plate, outline_px) in enumerate(self._cast):
            rows, columns = np.nonzero(self._owner == index + 1)
            if not len(rows):
                continue
            box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
            visible = len(rows) / outline_px
            small = min(box[2] - box[0], box[3] - box[1]) < MIN_VEHICLE_PX
            plate_box, whole = self._visible_plate(plate, owner=index + 1)
            text = characters_of(vehicle.text)
            longest = max(len(line) for line in vehicle.text.split("/"))
            pitch = float(np.linalg.norm(plate[1] - plate[0])) / (longest + 0.5)
            found.append(
                Truth(
                    track=vehicle.track,
                    kind=vehicle.kind,
                    box=box,
                    visible=visible,
                    ignore=visible < MIN_VISIBLE or small,
                    plate_box=plate_box,
                    text=text,
                    readable=whole and pitch >= READABLE_PX_PER_CHARACTER and visible >= MIN_VISIBLE,
                )
            )
        return found

    def _visible_plate(self, corners: Points, *, owner: int) -> tuple[Box | None, bool]:
        """Return the plate's box in the frame, None when over half is hidden, and whether it is entirely in view."""
        across, down = np.meshgrid((np.arange(16) + 0.5) / 16, (np.arange(6) + 0.5) / 6)
        u, v = across.reshape(-1, 1), down.reshape(-1, 1)
        points = (corners[0] * (1 - u) + corners[1] * u) * (1 - v) + (corners[3] * (1 - u) + corners[2] * u) * v
        x, y = points[:, 0].astype(int), points[:, 1].astype(int)
        inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
        mine = np.zeros(len(x), dtype=bool)
        mine[inside] = self._owner[y[inside], x[inside]] == owner
        x0, y0 = np.clip(corners.min(axis=0), 0, (WIDTH, HEIGHT))
        x1, y1 = np.clip(corners.max(axis=0), 0, (WIDTH, HEIGHT))
        if mine.mean() < 0.5 or x1 - x0 < 4 or y1 - y0 < 2:
            return None, False
        return (float(x0), float(y0), float(x1), float(y1)), bool(mine.mean() >= 0.99)


class _Tile:
    """A part of the canvas around one vehicle, drawn at twice the resolution."""

    _MARGIN = 10

    def __init__(self, x0: int, y0: int, width: int, height: int) -> None:
        self._x0, self._y0, self._width, self._height = x0, y0, width, height
        size = (width * _SUPERSAMPLE, height * _SUPERSAMPLE)
        self._colour, self._mask, self._shine = Image.new("RGB", size), Image.new("L", size), Image.new("L", size)

    @classmethod
    def around(cls, points: Points) -> "_Tile | None":
        """Return a tile with the `points` that are near the frame; None when all are outside."""
        low = np.maximum(np.floor(points.min(axis=0)).astype(int), 0) - cls._MARGIN
        high = np.minimum(np.ceil(points.max(axis=0)).astype(int), (WIDTH, HEIGHT)) + cls._MARGIN
        width, height = (high - low).tolist()
        if width <= 2 * cls._MARGIN or height <= 2 * cls._MARGIN:
            return None
        return cls(int(low[0]), int(low[1]), width, height)

    def draw(self, drawing: Drawing, texture: Image.Image, *, plate_light: float) -> None:
        """Draw the polygons in order, then the plate."""
        colour, mask, shine = ImageDraw.Draw(self._colour), ImageDraw.Draw(self._mask), ImageDraw.Draw(self._shine)
        for polygon in drawing.polygons:
            points = [tuple(p) for p in self._inside(polygon.points)]
            r, g, b = polygon.colour
            colour.polygon(points, fill=(int(r), int(g), int(b)))
            shine.polygon(points, fill=int(255 * polygon.shine))
            if polygon.outline:
                mask.polygon(points, fill=255)
        corners = self._inside(drawing.plate)
        _paste_quad(self._colour, texture, corners)
        shine.polygon([tuple(p) for p in corners], fill=int(255 * plate_light))

    def _inside(self, points: Points) -> Points:
        return (points - (self._x0, self._y0)) * _SUPERSAMPLE

    def finish(
        self, motion: tuple[float, float]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return colour (premultiplied by the mask), mask and shine at the frame's resolution, blurred by `motion`."""
        colour = np.asarray(self._colour.reduce(_SUPERSAMPLE), dtype=np.float32)
        mask = np.asarray(self._mask.reduce(_SUPERSAMPLE), dtype=np.float32) / 255.0
        shine = np.asarray(self._shine.reduce(_SUPERSAMPLE), dtype=np.float32) / 255.0
        stack = np.concatenate([colour, mask[..., None], shine[..., None]], axis=-1)
        steps = round(max(abs(motion[0]), abs(motion[1])))
        if steps >= 1:
            shifts = [
                (round(motion[1] * (i / steps - 0.5)), round(motion[0] * (i / steps - 0.5))) for i in range(steps + 1)
            ]
            moved = np.zeros_like(stack)
            for shift in shifts:
                _add_shifted(moved, stack, shift)
            stack = moved / len(shifts)
        return stack[..., :3], stack[..., 3], stack[..., 4]

    def place(self) -> tuple[slice, slice, tuple[slice, slice]]:
        """Return the rows and columns of the canvas under the tile, and the part of the tile on the canvas."""
        y0, x0 = max(self._y0, 0), max(self._x0, 0)
        y1, x1 = min(self._y0 + self._height, HEIGHT), min(self._x0 + self._width, WIDTH)
        inner = (slice(y0 - self._y0, y1 - self._y0), slice(x0 - self._x0, x1 - self._x0))
        return slice(y0, y1), slice(x0, x1), inner


def _add_shifted(total: NDArray[np.float32], image: NDArray[np.float32], shift: tuple[int, int]) -> None:
    """Add `image` shifted by rows and columns; pixels from outside count as 0."""

    def spans(by: int) -> tuple[slice, slice]:
        return slice(max(by, 0), min(by, 0) or None), slice(max(-by, 0), min(-by, 0) or None)

    (to_rows, from_rows), (to_columns, from_columns) = spans(shift[0]), spans(shift[1])
    total[to_rows, to_columns] += image[from_rows, from_columns]


def _paste_quad(image: Image.Image, texture: Image.Image, corners: Points) -> None:
    """Paste `texture` with its corners on `corners` (clockwise from top left)."""
    x0, y0 = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(corners.max(axis=0)).astype(int), image.size)
    if x1 - x0 < 1 or y1 - y0 < 1:
        return
    shrink = int(texture.width / max(float(np.linalg.norm(corners[1] - corners[0])), 1.0))
    if shrink > 1:
        texture = texture.reduce(shrink)
    target = corners - (x0, y0)
    size = (int(x1 - x0), int(y1 - y0))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon([tuple(p) for p in target], fill=255)
    source = ((0, 0), (texture.width, 0), (texture.width, texture.height), (0, texture.height))
    warped = texture.transform(size, Image.Transform.PERSPECTIVE, _homography(target, source), Image.Resampling.BICUBIC)
    image.paste(warped, (int(x0), int(y0)), mask)


def _homography(target: Points, source: Sequence[tuple[float, float]]) -> list[float]:
    """Return the eight coefficients that map `target` to `source`, for Pillow's PERSPECTIVE."""
    rows, values = list[list[float]](), list[float]()
    for (x, y), (u, v) in zip(target.tolist(), source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return [float(c) for c in np.linalg.solve(np.array(rows), np.array(values))]
