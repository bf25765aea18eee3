"""Applies light and weather to a finished frame, in this order: light, fog, glow, rain, blur, noise.

All images are float32 (H, W, 3), 0 to 255.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from lpr.drawing import Lamp

Image3 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Condition:
    """Ranges from which a clip draws its light and weather; each pair is low and high.

    Attributes:
        gain: share of full daylight.
        tint: factors of red, green, blue.
        ambient: share of light without direction.
        lights: brightness of lamps, 0 to 1.
        noise: standard deviation of the sensor's noise, grey levels.
        fog: share of the far image that fog hides.
        blur_px: radius of the lens's blur.
        exposure_s: shutter time.
        rain: streaks per frame.
        glare: factor on the radius of a lamp's halo.
        plate_light: retroreflection of a plate, 0 to 1.
    """

    gain: tuple[float, float]
    tint: tuple[float, float, float]
    ambient: tuple[float, float]
    lights: tuple[float, float] = (0.0, 0.0)
    noise: tuple[float, float] = (1.5, 4.0)
    fog: tuple[float, float] = (0.0, 0.05)
    blur_px: tuple[float, float] = (0.0, 0.5)
    exposure_s: tuple[float, float] = (0.001, 0.003)
    rain: tuple[int, int] = (0, 0)
    glare: tuple[float, float] = (0.0, 0.0)
    plate_light: tuple[float, float] = (0.0, 0.0)


CONDITIONS: dict[str, Condition] = {
    "day": Condition(gain=(0.9, 1.2), tint=(1.0, 1.0, 0.98), ambient=(0.4, 0.7)),
    "dusk": Condition(
        gain=(0.42, 0.62), tint=(1.10, 0.96, 0.84), ambient=(0.6, 0.8), lights=(0.4, 0.9), noise=(2.5, 6.0),
        exposure_s=(0.002, 0.004), glare=(0.3, 0.7), plate_light=(0.0, 0.15),
    ),
    "rain": Condition(
        gain=(0.5, 0.75), tint=(0.94, 0.98, 1.04), ambient=(0.8, 0.95), lights=(0.2, 0.8), noise=(2.0, 5.0),
        fog=(0.08, 0.25), blur_px=(0.2, 0.7), exposure_s=(0.002, 0.004), rain=(60, 220), glare=(0.3, 0.8),
    ),
    "night": Condition(
        gain=(0.16, 0.30), tint=(0.92, 0.97, 1.06), ambient=(0.7, 0.9), lights=(0.8, 1.0), noise=(4.0, 8.0),
        exposure_s=(0.002, 0.005), glare=(0.6, 1.0), plate_light=(0.25, 0.5),
    ),
    # Darker, noisier and with longer exposure than the training clips; used by the shifted set `night`.
    "deep_night": Condition(
        gain=(0.10, 0.17), tint=(0.88, 0.96, 1.10), ambient=(0.7, 0.9), lights=(0.9, 1.0), noise=(7.0, 11.0),
        blur_px=(0.2, 0.8), exposure_s=(0.004, 0.008), glare=(0.8, 1.3), plate_light=(0.15, 0.4),
    ),
}  # fmt: skip


@dataclass(slots=True)
class Weather:
    """The weather of one clip, drawn from a `Condition`."""

    gain: float
    tint: tuple[float, float, float]
    ambient: float
    lights: float
    noise: float
    fog: float
    blur_px: float
    exposure_s: float
    rain: int
    glare: float
    plate_light: float
    sun: NDArray[np.float64]


def draw_weather(condition: Condition, rng: np.random.Generator) -> Weather:
    """Draw one clip's weather."""

    def pick(pair: tuple[float, float]) -> float:
        return float(rng.uniform(*pair))

    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.2)
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    return Weather(
        gain=pick(condition.gain),
        tint=condition.tint,
        ambient=pick(condition.ambient),
        lights=pick(condition.lights),
        noise=pick(condition.noise),
        fog=pick(condition.fog),
        blur_px=pick(condition.blur_px),
        exposure_s=pick(condition.exposure_s),
        rain=int(rng.integers(condition.rain[0], condition.rain[1] + 1)),
        glare=pick(condition.glare),
        plate_light=pick(condition.plate_light),
        sun=sun,
    )


class Develop:
    """Turns a clip's evenly lit canvases into the frames of a camera in this weather."""

    def __init__(self, weather: Weather, rng: np.random.Generator, *, width: int, height: int) -> None:
        """Prepare the constants of the clip: fog, vignette, a bank of noise."""
        self._weather = weather
        self._rng = rng
        self._size = (width, height)
        rows = np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None, None]
        self._fog = weather.fog * (0.35 + 0.65 * rows)
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        self._vignette = (1.0 - rng.uniform(0.02, 0.16) * (x * x + y * y))[..., None].astype(np.float32)
        self._noise_bank = rng.standard_normal((height + 64, width + 64)).astype(np.float32) * weather.noise

    def __call__(self, canvas: Image3, shine: NDArray[np.float32], lamps: Sequence[Lamp]) -> NDArray[np.uint8]:
        """Apply light, weather, lens and sensor.

        Args:
            canvas: (H, W, 3), in full light.
            shine: (H, W), 1 where a surface emits light.
            lamps: lamps that glow.

        Returns:
            The frame, uint8 (H, W, 3).
        """
        weather = self._weather
        gain = weather.gain + (1.0 - weather.gain) * shine[..., None]
        image = canvas * (gain * self._vignette) * np.asarray(weather.tint, dtype=np.float32)
        if weather.fog > 0.02:
            image += (190.0 * weather.gain - image) * self._fog
        if weather.glare > 0:
            self._add_glow(image, lamps)
        if weather.rain:
            image += self._streaks()[..., None]
        if weather.blur_px > 0.15:
            blurred = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).filter(
                ImageFilter.GaussianBlur(weather.blur_px)
            )
            image = np.asarray(blurred, dtype=np.float32)
        image = image + self._noise()
        return np.clip(image, 0, 255).astype(np.uint8)

    def _add_glow(self, image: Image3, lamps: Sequence[Lamp]) -> None:
        width, height = self._size
        for lamp in lamps:
            reach = lamp.radius * self._weather.glare * 1.6
            x0, x1 = max(0, int(lamp.centre[0] - 2 * reach)), min(width, int(lamp.centre[0] + 2 * reach) + 1)
            y0, y1 = max(0, int(lamp.centre[1] - 2 * reach)), min(height, int(lamp.centre[1] + 2 * reach) + 1)
            if x0 >= x1 or y0 >= y1:
                continue
            dx = (np.arange(x0, x1, dtype=np.float32) - lamp.centre[0]) / reach
            dy = (np.arange(y0, y1, dtype=np.float32) - lamp.centre[1]) / reach
            halo = np.exp(-2.2 * (dx[None, :] ** 2 + dy[:, None] ** 2))[..., None]
            image[y0:y1, x0:x1] += halo * (0.35 * np.asarray(lamp.colour, dtype=np.float32))

    def _streaks(self) -> NDArray[np.float32]:
        width, height = self._size
        layer = Image.new("L", (width, height))
        draw = ImageDraw.Draw(layer)
        lean = 3.0
        for _ in range(self._weather.rain):
            x, y = self._rng.uniform(0, width), self._rng.uniform(-20, height)
            length = self._rng.uniform(8, 26)
            draw.line([(x, y), (x + lean * length / 20, y + length)], fill=int(self._rng.integers(14, 44)))
        return np.asarray(layer, dtype=np.float32)

    def _noise(self) -> NDArray[np.float32]:
        """Return brightness noise from random parts of the bank, with a smaller part that differs by colour."""
        width, height = self._size

        def cut() -> NDArray[np.float32]:
            y, x = self._rng.integers(0, 64, size=2)
            return self._noise_bank[y : y + height, x : x + width]

        red, blue = cut(), cut()
        luma = cut()
        return np.stack([luma + 0.4 * red, luma, luma + 0.4 * blue], axis=-1)
