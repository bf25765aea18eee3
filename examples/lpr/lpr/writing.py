"""Writes rendered frames as H.264 mp4 and their ground truth as COCO JSON; `lpr.data` explains the fields."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from lpr.composing import Truth

Frame = NDArray[np.uint8]


class VideoWriter:
    """Writes frames as H.264 mp4, and their ground truth to a JSON file beside it.

    The same frames always give the same bytes, because the encoder has one thread and fixed settings.
    """

    def __init__(self, path: Path, *, fps: int, width: int, height: int, crf: int = 27) -> None:
        """Open `path` for writing; `crf` is x264's quality, lower is better."""
        self._container = av.open(str(path), "w")
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps), options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.gop_size = 40
        self._truth = CocoTruth(fps=fps, width=width, height=height)
        self._annotations = path.with_suffix(".json")

    def write(self, frame: Frame, truths: Sequence[Truth], *, condition: str, clip: int) -> None:
        """Append one frame, RGB (H, W, 3)."""
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
            self._container.mux(packet)
        self._truth.add(truths, condition=condition, clip=clip)

    def close(self) -> None:
        """Flush the encoder and write the annotations."""
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        self._annotations.write_text(json.dumps(self._truth.document(), separators=(",", ":")))


class CocoTruth:
    """Collects ground truth as a COCO document."""

    def __init__(self, *, fps: int, width: int, height: int) -> None:
        """Start an empty document."""
        self._info = {"description": "rendered traffic", "fps": fps}
        self._size = {"width": width, "height": height}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, truths: Sequence[Truth], *, condition: str, clip: int) -> None:
        """Append one frame."""
        image_id = len(self._images)
        name = f"frame_{image_id:05d}"
        self._images.append({"id": image_id, "file_name": name, **self._size, "condition": condition, "clip": clip})
        for truth in truths:
            x0, y0, x1, y1 = truth.box
            annotation: dict[str, Any] = {
                "id": len(self._annotations) + 1,
                "image_id": image_id,
                "category_id": 1,
                "bbox": [round(v, 1) for v in (x0, y0, x1 - x0, y1 - y0)],
                "area": round((x1 - x0) * (y1 - y0), 1),
                "iscrowd": int(truth.ignore),
                "track_id": clip * 1000 + truth.track,
                "kind": truth.kind,
            }
            if truth.plate_box is not None:
                px0, py0, px1, py1 = truth.plate_box
                annotation["plate_bbox"] = [round(v, 1) for v in (px0, py0, px1 - px0, py1 - py0)]
                annotation["text"] = truth.text
                annotation["readable"] = truth.readable
            self._annotations.append(annotation)

    def document(self) -> dict[str, Any]:
        """Return the COCO document."""
        categories = [{"id": 1, "name": "vehicle"}]
        return {"info": self._info, "images": self._images, "annotations": self._annotations, "categories": categories}
