"""Renders the training clips, encodes them as video, decodes them and cuts out the inputs of the networks.

Frames pass the same encoder, decoder and crops as in an evaluation, so that the networks learn from realistic inputs.
Worker processes render the clips in chunks; the result does not depend on the number of workers.
"""

import multiprocessing
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lpr.boxes import crop, expand
from lpr.data import FrameTargets, VideoFrames
from lpr.datasets import DATA_SETS
from lpr.models import VEHICLE_INPUT
from lpr.pipeline import PLATE_CONTEXT, VEHICLE_CONTEXT, shrink
from lpr.render import FPS, ClipSpec, render_clip
from lpr.road import HEIGHT, WIDTH
from lpr.writing import VideoWriter

CROP_PX = 160
CROP_MARGIN = CROP_PX / 128
READER_PX = (44, 132)
READER_MARGIN = 132 / 96
MIN_PX_PER_CHARACTER = 4.5
_CLIPS_PER_CHUNK = 20


@dataclass(slots=True)
class TrainingData:
    """The training data: N frames, M vehicles, P plates.

    Attributes:
        frames_N3HW: uint8 at `VEHICLE_INPUT`.
        vehicles: per frame the boxes (K, 4) at that size.
        ignore: per frame which boxes to ignore (K,).
        crops_M3HW: uint8 vehicles with a larger margin than in the plate detector's input.
        plates_M4: the plate in the crop, pixels; NaN where there is none.
        readings_P3HW: uint8 plates with a larger margin than in the reader's input.
        texts: the texts of those plates.
    """

    frames_N3HW: NDArray[np.uint8]
    vehicles: list[NDArray[np.float32]]
    ignore: list[NDArray[np.bool_]]
    crops_M3HW: NDArray[np.uint8]
    plates_M4: NDArray[np.float32]
    readings_P3HW: NDArray[np.uint8]
    texts: list[str]


def collect(name: str, *, workers: int, share: float = 1.0) -> TrainingData:
    """Render the set `name` (or the first `share` of it) with `workers` processes."""
    clips = DATA_SETS[name].clips()
    clips = clips[: max(1, round(len(clips) * share))]
    chunks = [clips[i : i + _CLIPS_PER_CHUNK] for i in range(0, len(clips), _CLIPS_PER_CHUNK)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return join(pool.map(collect_chunk, chunks, chunksize=1))


def join(parts: Sequence[TrainingData]) -> TrainingData:
    """Join parts."""
    return TrainingData(
        frames_N3HW=np.concatenate([p.frames_N3HW for p in parts]),
        vehicles=[boxes for p in parts for boxes in p.vehicles],
        ignore=[flags for p in parts for flags in p.ignore],
        crops_M3HW=np.concatenate([p.crops_M3HW for p in parts]),
        plates_M4=np.concatenate([p.plates_M4 for p in parts]),
        readings_P3HW=np.concatenate([p.readings_P3HW for p in parts]),
        texts=[text for p in parts for text in p.texts],
    )


def collect_chunk(clips: Sequence[ClipSpec]) -> TrainingData:
    """Render, encode, decode and cut a few clips."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chunk.mp4"
        writer = VideoWriter(path, fps=FPS, width=WIDTH, height=HEIGHT)
        for number, spec in enumerate(clips):
            for frame, truths in render_clip(spec):
                writer.write(frame, truths, condition=spec.condition, clip=number)
        writer.close()
        return join(
            [_cut(b.data, b.targets) for b in VideoFrames(str(path), str(path.with_suffix(".json")), batch_size=16)]
        )


def _cut(frames_BCHW: torch.Tensor, targets: Sequence[FrameTargets]) -> TrainingData:
    scale = np.array([VEHICLE_INPUT[1] / WIDTH, VEHICLE_INPUT[0] / HEIGHT] * 2, dtype=np.float32)
    frame_K = np.concatenate([np.full(len(t.texts), i) for i, t in enumerate(targets)]).astype(np.int64)
    vehicles_K4 = np.concatenate([t.vehicles_N4 for t in targets])
    plates_K4 = np.concatenate([t.plates_N4 for t in targets])
    counted_K = ~np.concatenate([t.ignore_N for t in targets])
    texts = [text for t in targets for text in t.texts]
    legible_K = np.array([_legible(box, text) for box, text in zip(plates_K4, texts, strict=True)], dtype=np.bool_)

    areas = expand(
        torch.from_numpy(vehicles_K4[counted_K]),
        width=VEHICLE_CONTEXT * CROP_MARGIN,
        height=VEHICLE_CONTEXT * CROP_MARGIN,
    )
    crops = crop(frames_BCHW, areas, torch.from_numpy(frame_K[counted_K]), size=(CROP_PX, CROP_PX))
    origin, size = areas[:, :2].numpy(), (areas[:, 2:] - areas[:, :2]).numpy()
    plates_M4 = (plates_K4[counted_K] - np.tile(origin, 2)) / np.tile(size, 2) * CROP_PX

    legible_areas = expand(
        torch.from_numpy(plates_K4[legible_K]),
        width=PLATE_CONTEXT[0] * READER_MARGIN,
        height=PLATE_CONTEXT[1] * READER_MARGIN,
    )
    readings = crop(frames_BCHW, legible_areas, torch.from_numpy(frame_K[legible_K]), size=READER_PX)
    return TrainingData(
        frames_N3HW=shrink(frames_BCHW).numpy(),
        vehicles=[t.vehicles_N4 * scale for t in targets],
        ignore=[t.ignore_N for t in targets],
        crops_M3HW=_bytes(crops),
        plates_M4=plates_M4.astype(np.float32),
        readings_P3HW=_bytes(readings),
        texts=[text for text, legible in zip(texts, legible_K, strict=True) if legible],
    )


def _legible(box: NDArray[np.float32], text: str) -> bool:
    """Return whether the reader learns from a plate: it is in view and not much smaller than a readable one."""
    if (
        not text
        or np.isnan(box[0])
        or box[0] <= 0.5
        or box[1] <= 0.5
        or box[2] >= WIDTH - 0.5
        or box[3] >= HEIGHT - 0.5
    ):
        return False
    two_lines = (box[2] - box[0]) / (box[3] - box[1]) < 2.6
    return bool((box[2] - box[0]) / (len(text) * (0.5 if two_lines else 1.0) + 1) >= MIN_PX_PER_CHARACTER)


def _bytes(images: torch.Tensor) -> NDArray[np.uint8]:
    return images.round().clamp(0, 255).to(torch.uint8).numpy()
