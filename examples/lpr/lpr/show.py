"""Draws the results of the pipeline: `python -m lpr.show` writes shown.mp4 and shown.png to the current folder.

A green box is a vehicle. Its reading is above it: green when right, red when wrong, white when the truth is unknown. A
yellow box is its plate. A grey box is a missed vehicle of the ground truth.
"""

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lpr.data import FrameTargets, VideoFrames
from lpr.metrics import match
from lpr.pipeline import LicencePlatePipeline, Reading

GREEN, RED, YELLOW, GREY, WHITE = (60, 220, 90), (255, 70, 60), (250, 220, 60), (150, 150, 150), (255, 255, 255)
_FPS = 10


def draw_frame(frame: NDArray[np.uint8], readings: Sequence[Reading], targets: FrameTargets) -> Image.Image:
    """Draw boxes and readings on one frame (H, W, 3)."""
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(15)
    found = np.array([r["vehicle_box"] for r in readings], dtype=np.float64).reshape(-1, 4)
    pairs = match(found, targets.vehicles_N4.astype(np.float64))
    for missed in set(range(len(targets.texts))) - set(pairs) - set(np.flatnonzero(targets.ignore_N).tolist()):
        draw.rectangle(tuple(targets.vehicles_N4[missed].tolist()), outline=GREY, width=2)
    truth = _texts_of_plates(readings, targets)
    for number, reading in enumerate(readings):
        draw.rectangle(tuple(reading["vehicle_box"]), outline=GREEN, width=2)
        if reading["plate_box"] is not None:
            draw.rectangle(tuple(reading["plate_box"]), outline=YELLOW, width=2)
            true = truth.get(number)
            colour = WHITE if true is None else GREEN if reading["text"] == true else RED
            x, y = reading["vehicle_box"][0] + 3, max(reading["vehicle_box"][1] - 19, 1)
            length = draw.textlength(reading["text"], font=font)
            draw.rectangle((x - 3, y - 1, x + length + 4, y + 18), fill=(0, 0, 0))
            draw.text((x, y), reading["text"], fill=colour, font=font)
    return image


def _texts_of_plates(readings: Sequence[Reading], targets: FrameTargets) -> dict[int, str]:
    """Return the true text of each reading on a readable plate, by the reading's number."""
    plates = [i for i, reading in enumerate(readings) if reading["plate_box"] is not None]
    found = np.array([readings[i]["plate_box"] for i in plates], dtype=np.float64).reshape(-1, 4)
    readable = np.flatnonzero(targets.readable_N & ~np.isnan(targets.plates_N4[:, 0]))
    pairs = match(found, targets.plates_N4[readable].astype(np.float64))
    return {plates[seen]: targets.texts[readable[true]] for true, seen in pairs.items()}


def show(data: VideoFrames, pipeline: LicencePlatePipeline, *, folder: Path, still: int, limit: int) -> None:
    """Write shown.mp4 with the first `limit` frames, and frame `still` as shown.png."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    with av.open(str(folder / "shown.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(_FPS), options={"crf": "23"})
        stream.pix_fmt = "yuv420p"
        for batch in data:
            output = batch.data
            for stage in pipeline.stages.values():
                output = stage(output)
            for frame, readings, targets in zip(batch.data, output, batch.targets, strict=True):
                image = draw_frame(frame.permute(1, 2, 0).numpy(), readings, targets)
                if number == 0:
                    stream.width, stream.height = image.size
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
                if number == still:
                    image.save(folder / "shown.png")
                number += 1
                if number >= limit:
                    break
            if number >= limit:
                break
        container.mux(stream.encode(None))


def main(arguments: list[str]) -> None:
    """Parse the arguments, draw, and print the paths of the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", default="data/validation.mp4")
    parser.add_argument("--annotations", help="COCO JSON; default: beside the video")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--still", type=int, default=0, help="frame to write as PNG")
    parser.add_argument("--limit", type=int, default=100_000, help="frames to write")
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args(arguments)
    annotations = options.annotations or str(Path(options.video).with_suffix(".json"))
    data = VideoFrames(options.video, annotations, batch_size=8)
    pipeline = LicencePlatePipeline(device=options.device)
    show(data, pipeline, folder=options.folder, still=options.still, limit=options.limit)
    print(f"{options.folder / 'shown.mp4'} and {options.folder / 'shown.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
