"""Draws licence plates with a stroke alphabet of its own, so that a plate looks the same on every machine.

It returns flat textures, which the renderer projects, and does not know vehicles or cameras.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

ALPHABET = "0123456789ABCDEFGHJKLMNPRSTUVWXYZ"
"""Every character of the plates; I, O and Q are left out as in many countries."""
PIXELS_PER_METRE = 400
ONE_LINE_M = (0.60, 0.14)
TWO_LINE_M = (0.40, 0.24)

Stroke = tuple[tuple[float, float], ...]

# Strokes on a 4 wide, 6 high grid, y down. A stroke whose first and last point agree is closed.
_GLYPHS: dict[str, tuple[Stroke, ...]] = {
    "0": (((1, 0), (3, 0), (4, 1), (4, 5), (3, 6), (1, 6), (0, 5), (0, 1), (1, 0)),),
    "1": (((0.6, 1.4), (2.2, 0), (2.2, 6)),),
    "2": (((0, 1.2), (1, 0), (3, 0), (4, 1), (4, 2.2), (0, 6), (4, 6)),),
    "3": (((0, 0), (4, 0), (1.8, 2.4), (3, 2.4), (4, 3.4), (4, 5), (3, 6), (1, 6), (0, 5)),),
    "4": (((2.6, 0), (0, 4.2), (4, 4.2)), ((3, 2.4), (3, 6))),
    "5": (((4, 0), (0.4, 0), (0.2, 2.6), (3, 2.6), (4, 3.5), (4, 5), (3, 6), (1, 6), (0, 5.2)),),
    "6": (((3.2, 0), (1.6, 0.6), (0, 3.4), (0, 5), (1, 6), (3, 6), (4, 5), (4, 3.6), (3, 2.7), (1, 2.7), (0.1, 3.4)),),
    "7": (((0, 0), (4, 0), (1.4, 6)),),
    "8": (
        ((1, 0), (3, 0), (3.8, 0.9), (3.8, 1.9), (3, 2.8), (1, 2.8), (0.2, 1.9), (0.2, 0.9), (1, 0)),
        ((1, 2.8), (3, 2.8), (4, 3.8), (4, 5), (3, 6), (1, 6), (0, 5), (0, 3.8), (1, 2.8)),
    ),
    "9": (((0.8, 6), (2.4, 5.4), (4, 2.6), (4, 1), (3, 0), (1, 0), (0, 1), (0, 2.4), (1, 3.3), (3, 3.3), (3.9, 2.6)),),
    "A": (((0, 6), (2, 0), (4, 6)), ((0.7, 4.1), (3.3, 4.1))),
    "B": (
        ((0, 0), (0, 6)),
        ((0, 0), (2.8, 0), (3.7, 0.8), (3.7, 2), (2.8, 2.8), (0, 2.8)),
        ((2.8, 2.8), (3, 2.8), (4, 3.7), (4, 5.1), (3, 6), (0, 6)),
    ),
    "C": (((4, 1.2), (3, 0), (1, 0), (0, 1), (0, 5), (1, 6), (3, 6), (4, 4.8)),),
    "D": (((0, 0), (0, 6)), ((0, 0), (2.4, 0), (4, 1.6), (4, 4.4), (2.4, 6), (0, 6))),
    "E": (((4, 0), (0, 0), (0, 6), (4, 6)), ((0, 2.9), (3, 2.9))),
    "F": (((4, 0), (0, 0), (0, 6)), ((0, 2.9), (3, 2.9))),
    "G": (((4, 1.2), (3, 0), (1, 0), (0, 1), (0, 5), (1, 6), (3, 6), (4, 5), (4, 3.2), (2.3, 3.2)),),
    "H": (((0, 0), (0, 6)), ((4, 0), (4, 6)), ((0, 2.9), (4, 2.9))),
    "J": (((1.4, 0), (3.6, 0), (3.6, 4.8), (2.6, 6), (1, 6), (0, 4.8)),),
    "K": (((0, 0), (0, 6)), ((4, 0), (0, 3.6)), ((1.4, 2.4), (4, 6))),
    "L": (((0, 0), (0, 6), (4, 6)),),
    "M": (((0, 6), (0, 0), (2, 3.2), (4, 0), (4, 6)),),
    "N": (((0, 6), (0, 0), (4, 6), (4, 0)),),
    "P": (((0, 6), (0, 0), (3, 0), (4, 0.9), (4, 2.3), (3, 3.2), (0, 3.2)),),
    "R": (((0, 6), (0, 0), (3, 0), (4, 0.9), (4, 2.2), (3, 3.1), (0, 3.1)), ((2, 3.1), (4, 6))),
    "S": (((4, 1.1), (3, 0), (1, 0), (0, 1), (0, 2), (1, 2.8), (3, 3.1), (4, 4), (4, 5), (3, 6), (1, 6), (0, 4.9)),),
    "T": (((0, 0), (4, 0)), ((2, 0), (2, 6))),
    "U": (((0, 0), (0, 5), (1, 6), (3, 6), (4, 5), (4, 0)),),
    "V": (((0, 0), (2, 6), (4, 0)),),
    "W": (((0, 0), (0.9, 6), (2, 2), (3.1, 6), (4, 0)),),
    "X": (((0, 0), (4, 6)), ((4, 0), (0, 6))),
    "Y": (((0, 0), (2, 2.9), (4, 0)), ((2, 2.9), (2, 6))),
    "Z": (((0, 0), (4, 0), (0, 6), (4, 6)),),
}

_PATTERNS = ("AA 999 AA", "999 AAA", "AA 99 AAA", "A 99999", "AAA 999", "99 AAA 99", "AA 9999", "AAA 99")
_TWO_LINE_PATTERNS = ("AAA/9999", "AA/999", "999/AAA", "AA 9/9999", "99/AA 99")
# (background, ink, border): the last two are light on dark.
_COLOURS = (
    ((236, 238, 240), (18, 18, 22), (40, 40, 44)),
    ((236, 238, 240), (24, 36, 110), (90, 90, 96)),
    ((240, 204, 66), (20, 20, 20), (40, 40, 40)),
    ((206, 222, 240), (20, 30, 60), (70, 80, 100)),
    ((214, 232, 206), (16, 70, 36), (40, 90, 50)),
    ((26, 28, 32), (232, 232, 232), (160, 160, 160)),
    ((24, 66, 130), (240, 240, 240), (200, 200, 200)),
)
_COLOUR_WEIGHTS = (0.4, 0.12, 0.16, 0.1, 0.08, 0.08, 0.06)


@dataclass(frozen=True, slots=True)
class PlateStyle:
    """The look of a plate, without its text.

    Attributes:
        lines: 1 or 2 lines of text.
        colour: index of background, ink and border colour.
        smooth: how often corners are cut: 0 is an angular font, 2 a round one.
        stroke: stroke width as a share of the character's height.
        narrow: character width as a factor of the normal one.
        slant: horizontal shift of the top as a share of the height.
        band: whether a blue band is at the left.
        separator: a space, a dash or a dot between groups.
        dirt: stains on the surface, 0 (clean) to 1.
    """

    lines: int
    colour: int
    smooth: int
    stroke: float
    narrow: float
    slant: float
    band: bool
    separator: str
    dirt: float

    @property
    def size_m(self) -> tuple[float, float]:
        """Width and height in metres."""
        return ONE_LINE_M if self.lines == 1 else TWO_LINE_M


def random_style(rng: np.random.Generator, *, two_line_share: float = 0.12) -> PlateStyle:
    """Draw a style; most plates have one line."""
    return PlateStyle(
        lines=2 if rng.random() < two_line_share else 1,
        colour=int(rng.choice(len(_COLOURS), p=_COLOUR_WEIGHTS)),
        smooth=int(rng.integers(0, 3)),
        stroke=float(rng.uniform(0.12, 0.19)),
        narrow=float(rng.uniform(0.82, 1.05)),
        slant=float(rng.uniform(-0.04, 0.08)) if rng.random() < 0.3 else 0.0,
        band=bool(rng.random() < 0.35),
        separator=str(rng.choice([" ", " ", "-", "."])),
        dirt=float(rng.beta(1.0, 5.0)),
    )


def random_text(rng: np.random.Generator, *, lines: int = 1) -> str:
    """Draw a text such as `AB 123 CD`; a space separates groups, a slash separates lines."""
    patterns = _PATTERNS if lines == 1 else _TWO_LINE_PATTERNS
    pattern = patterns[int(rng.integers(len(patterns)))]
    letters, digits = ALPHABET[10:], ALPHABET[:10]
    pools = {"A": letters, "9": digits}
    return "".join(pools[c][int(rng.integers(len(pools[c])))] if c in pools else c for c in pattern)


def characters_of(text: str) -> str:
    """Return the characters of `text` without separators, top line first, as a reader must return them."""
    return text.replace(" ", "").replace("/", "")


@lru_cache(maxsize=256)
def _strokes(char: str, smooth: int) -> tuple[Stroke, ...]:
    """Return the strokes of `char` with corners cut `smooth` times (Chaikin's scheme)."""
    return tuple(_cut_corners(stroke, smooth) for stroke in _GLYPHS[char])


def _cut_corners(stroke: Stroke, times: int) -> Stroke:
    points = np.asarray(stroke, dtype=np.float64)
    closed = bool(np.allclose(points[0], points[-1]))
    for _ in range(times):
        if len(points) < 3:
            break
        head, tail = points[:-1], points[1:]
        length = np.linalg.norm(tail - head, axis=1, keepdims=True)
        share = np.minimum(0.22, 0.7 / np.maximum(length, 1e-9))
        cut = np.stack([head + share * (tail - head), tail - share * (tail - head)], axis=1).reshape(-1, 2)
        points = np.concatenate([cut, cut[:1]]) if closed else np.concatenate([points[:1], cut[1:-1], points[-1:]])
    return tuple((float(x), float(y)) for x, y in points)


def _draw_line(
    draw: ImageDraw.ImageDraw, text: str, *, area: tuple[float, float, float, float], style: PlateStyle
) -> None:
    """Draw one line of text, centred in `area` (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = area
    height = (y1 - y0) * 0.70
    advance = {" ": 0.38 if style.separator == " " else 0.48}
    units = sum(advance.get(c, 1.0) for c in text)
    pitch = min((x1 - x0) * 0.96 / units, height * 0.80 * style.narrow)
    width = pitch * 0.68
    ink = _COLOURS[style.colour][1]
    thickness = max(2, round(style.stroke * height))
    left = (x0 + x1) / 2 - units * pitch / 2
    top = (y0 + y1) / 2 - height / 2
    for char in text:
        step = advance.get(char, 1.0) * pitch
        if char == " ":
            _draw_separator(draw, style, centre=(left + step / 2, top + height / 2), thickness=thickness)
        else:
            for stroke in _strokes(char, style.smooth):
                points = [
                    (
                        left + (step - width) / 2 + x / 4 * width + style.slant * height * (1 - y / 6),
                        top + y / 6 * height,
                    )
                    for x, y in stroke
                ]
                _draw_stroke(draw, points, ink=ink, thickness=thickness)
        left += step


def _draw_stroke(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], *, ink: tuple[int, int, int], thickness: int
) -> None:
    draw.line(points, fill=ink, width=thickness, joint="curve")
    r = thickness / 2 - 0.5
    for x, y in (points[0], points[-1]):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)


def _draw_separator(
    draw: ImageDraw.ImageDraw, style: PlateStyle, *, centre: tuple[float, float], thickness: int
) -> None:
    ink = _COLOURS[style.colour][1]
    x, y = centre
    if style.separator == "-":
        draw.line([(x - thickness, y), (x + thickness, y)], fill=ink, width=max(2, thickness // 2))
    elif style.separator == ".":
        r = thickness * 0.45
        draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)


def plate_texture(text: str, style: PlateStyle, *, rng: np.random.Generator) -> Image.Image:
    """Draw the flat plate, RGB, `PIXELS_PER_METRE` per metre.

    Args:
        text: a text in the form of `random_text`; a slash separates lines.
        style: the look of the plate.
        rng: used for the stains only.
    """
    width, height = (round(m * PIXELS_PER_METRE) for m in style.size_m)
    background, _, border = _COLOURS[style.colour]
    image = Image.new("RGB", (width, height), background)
    draw = ImageDraw.Draw(image)
    left = 4.0
    if style.band:
        left = 22.0
        draw.rectangle((0, 0, 20, height), fill=(20, 60, 160))
        draw.ellipse((6, height * 0.25 - 4, 14, height * 0.25 + 4), outline=(240, 210, 60), width=2)
    lines = text.split("/")
    for number, line in enumerate(lines):
        top = 3 + (height - 6) * number / len(lines)
        _draw_line(draw, line, area=(left + 2, top, width - 5, top + (height - 6) / len(lines)), style=style)
    draw.rectangle((0, 0, width - 1, height - 1), outline=border, width=3)
    return _stain(image, style.dirt, rng)


def _stain(image: Image.Image, dirt: float, rng: np.random.Generator) -> Image.Image:
    """Stain soft patches of the plate; `dirt` is the largest opacity, 0 to 1."""
    if dirt < 0.03:
        return image
    patches = rng.random((4, 9)).astype(np.float32)
    mask = Image.fromarray((patches * 255 * min(dirt, 0.6)).astype(np.uint8)).resize(
        image.size, Image.Resampling.BICUBIC
    )
    return Image.composite(Image.new("RGB", image.size, (112, 100, 84)), image, mask)
