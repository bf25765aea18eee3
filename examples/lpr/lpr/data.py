"""Reads video and images with COCO-style ground truth, batch by batch, and checks them.

A frame is one COCO image. `annotations` have `bbox` (x, y, width, height), `category_id` (1 is vehicle), `iscrowd` for
vehicles too hidden to count, and this example's own fields `track_id`, `plate_bbox`, `text`, `readable`. Only these
fields are read, so any video with such labels works. Frames are read one batch at a time.

Shapes: B frames, C = 3 channels (RGB), H rows, W columns.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import av
import av.error
import numpy as np
import torch
from mlotel_cli.errors import DataError, UsageError
from mlotel_cli.records import Batch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lpr.plates import ALPHABET
from lpr.prefetch import Prefetched

Frame = NDArray[np.uint8]
CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4")
_EXAMPLE = Path(__file__).resolve().parent.parent


@dataclass(slots=True)
class FrameTargets:
    """Ground truth of one frame, for the metrics.

    Attributes:
        size: width and height of the frame, pixels.
        vehicles_N4: boxes, x0, y0, x1, y1.
        ignore_N: whether metrics ignore the vehicle.
        plates_N4: the plate of each vehicle; NaN where none is in view.
        texts: the plate's characters; empty when unknown.
        readable_N: whether a reader is expected to read the plate.
        tracks_N: track of each vehicle, -1 when unknown.
        condition: light and weather; empty when unknown.
    """

    size: tuple[int, int]
    vehicles_N4: NDArray[np.float32]
    ignore_N: NDArray[np.bool_]
    plates_N4: NDArray[np.float32]
    texts: list[str]
    readable_N: NDArray[np.bool_]
    tracks_N: NDArray[np.int64]
    condition: str


def resolve(path: str) -> Path:
    """Return the path unchanged when it is absolute or exists, else the path in this example's folder."""
    given = Path(path).expanduser()
    return given if given.is_absolute() or given.exists() else _EXAMPLE / given


def read_annotations(path: Path) -> list[tuple[str, FrameTargets]]:
    """Read and check a COCO file; return (file name, targets) per image, in the file's order.

    Raises:
        DataError: when the file is missing or not JSON, or an image or annotation is invalid.
    """
    document = _load_json(path)
    images = _list_of(document, "images", path)
    grouped: dict[Any, list[Mapping[str, Any]]] = {image.get("id"): [] for image in images}
    if len(grouped) != len(images):
        raise DataError(f"{path}: two images have the same id")
    for annotation in _list_of(document, "annotations", path):
        image_id = annotation.get("image_id")
        if image_id not in grouped:
            raise DataError(f"{path}: annotation {annotation.get('id')} is for image {image_id!r}, which is not listed")
        grouped[image_id].append(annotation)
    if not images:
        raise DataError(f"{path}: lists no images")
    return [(str(image.get("file_name", image["id"])), _targets(image, grouped[image["id"]], path)) for image in images]


def _load_json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read annotations {path}: {error.strerror}. Set data.annotations to a COCO JSON file"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} is not a COCO document: its top level is not an object")
    return cast("Mapping[str, Any]", document)


def _list_of(document: Mapping[str, Any], key: str, path: Path) -> list[Mapping[str, Any]]:
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in cast("list[Any]", value)):
        raise DataError(f"{path} is not a COCO document: {key!r} is not a list of objects")
    return cast("list[Mapping[str, Any]]", value)


def _targets(image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], path: Path) -> FrameTargets:
    where = f"{path}, image {image.get('file_name', image.get('id'))}"
    try:
        size = (int(image["width"]), int(image["height"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: width and height are missing or not numbers") from error
    missing = (float("nan"),) * 4
    texts = [str(a.get("text") or "") for a in annotations]
    for text in texts:
        unknown = sorted(set(text) - set(ALPHABET))
        if unknown:
            raise DataError(f"{where}: text {text!r} has unknown characters {''.join(unknown)!r}; known are {ALPHABET}")
    plates = [_box(a["plate_bbox"], size, where) if a.get("plate_bbox") else missing for a in annotations]
    return FrameTargets(
        size=size,
        vehicles_N4=np.array([_box(a.get("bbox"), size, where) for a in annotations], dtype=np.float32).reshape(-1, 4),
        ignore_N=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=np.bool_),
        plates_N4=np.array(plates, dtype=np.float32).reshape(-1, 4),
        texts=texts,
        readable_N=np.array(
            [bool(a.get("readable", bool(t))) for a, t in zip(annotations, texts, strict=True)], dtype=np.bool_
        ),
        tracks_N=np.array([int(a.get("track_id", -1)) for a in annotations], dtype=np.int64),
        condition=str(image.get("condition", "")),
    )


def _box(value: object, size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    """Convert a COCO box to corners, and check that it is inside the frame."""
    try:
        x, y, width, height = (float(v) for v in cast("Iterable[Any]", value))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: box {value!r} is not [x, y, width, height]") from error
    box = (x, y, x + width, y + height)
    if not (width > 0 and height > 0 and x >= -1 and y >= -1 and box[2] <= size[0] + 1 and box[3] <= size[1] + 1):
        raise DataError(f"{where}: box {value!r} is empty or outside the frame of {size[0]}x{size[1]}")
    return box


class _FrameSource(Protocol):
    def __iter__(self) -> Iterator[Frame]: ...


class LabelledFrames:
    """Batches of frames with their ground truth; each `iter()` starts at the first frame."""

    def __init__(
        self,
        frames: _FrameSource,
        labels: Sequence[tuple[str, FrameTargets]],
        *,
        batch_size: int,
        decode_ahead: int,
        origin: Path,
    ) -> None:
        """Check the arguments; users create `VideoFrames` or `ImageFrames`."""
        if batch_size < 1:
            raise UsageError(f"data.batch_size must be at least 1, got {batch_size}")
        if decode_ahead < 0:
            raise UsageError(f"data.decode_ahead must be at least 0, got {decode_ahead}")
        self._frames, self._labels, self._batch_size, self._origin = frames, labels, batch_size, origin
        self._decode_ahead = decode_ahead

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._labels) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches, decoded ahead on a thread. Data is a uint8 tensor (B, 3, H, W), channels last in memory."""
        if not self._decode_ahead:
            yield from self._decoded()
            return
        with Prefetched(self._decoded, ahead=self._decode_ahead) as batches:
            yield from batches

    def _decoded(self) -> Iterator[Batch]:
        frames = list[Frame]()
        start = 0
        for number, frame in enumerate(self._frames):
            if number >= len(self._labels):
                raise DataError(
                    f"{self._origin} has more frames than the {len(self._labels)} images of its annotations"
                )
            self._check_size(frame, number)
            frames.append(frame)
            if len(frames) == self._batch_size:
                yield self._batch(frames, start)
                start, frames = number + 1, []
        if frames:
            yield self._batch(frames, start)
        if start + len(frames) < len(self._labels):
            found, listed = start + len(frames), len(self._labels)
            raise DataError(f"{self._origin} ended after {found} frames; its annotations list {listed} images")

    def _check_size(self, frame: Frame, number: int) -> None:
        name, targets = self._labels[number]
        if (frame.shape[1], frame.shape[0]) != targets.size:
            raise DataError(
                f"{self._origin}, frame {number} ({name}) is {frame.shape[1]}x{frame.shape[0]}, "
                f"but {targets.size[0]}x{targets.size[1]} in its annotation"
            )

    def _batch(self, frames: Sequence[Frame], start: int) -> Batch:
        labels = self._labels[start : start + len(frames)]
        data = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        ids = [name for name, _ in labels]
        return Batch(start // self._batch_size, ids, data, [t for _, t in labels], len(frames))

    def close(self) -> None:
        """Do nothing: no file stays open between two iterations."""


class VideoFrames(LabelledFrames):
    """A video file with COCO annotations, one image per frame in order."""

    def __init__(self, path: str, annotations: str, *, batch_size: int = 16, decode_ahead: int = 2) -> None:
        """Check both files.

        Args:
            path: the video; a relative path is searched in the current folder, then in the example's.
            annotations: the COCO JSON file.
            batch_size: frames per batch; the last batch may be smaller.
            decode_ahead: batches to decode in advance, on a thread; 0 decodes on demand.

        Raises:
            DataError: when a file is missing or cannot be read.
        """
        video = resolve(path)
        frames = _VideoFile(video)
        super().__init__(
            frames,
            read_annotations(resolve(annotations)),
            batch_size=batch_size,
            decode_ahead=decode_ahead,
            origin=video,
        )


class _VideoFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise DataError(f"there is no video at {path}. Set data.path to a video file")
        with self._open() as container:
            self._stream_of(container)

    def _open(self) -> Any:
        try:
            return av.open(str(self._path))
        except (av.error.FFmpegError, ValueError) as error:
            size = self._path.stat().st_size
            raise DataError(f"{self._path} ({size} bytes) cannot be opened as a video: {error}") from error

    def _stream_of(self, container: Any) -> Any:
        if not container.streams.video:
            raise DataError(f"{self._path} has no video stream")
        stream = container.streams.video[0]
        name = stream.codec_context.name
        if not any(codec in name for codec in CODECS):
            raise DataError(f"{self._path} is coded as {name}; known are {', '.join(CODECS)}")
        return stream

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        with self._open() as container:
            stream = self._stream_of(container)
            stream.thread_type = "AUTO"
            try:
                for frame in container.decode(stream):
                    yield frame.to_ndarray(format="rgb24")
                    number += 1
            except av.error.FFmpegError as error:
                raise DataError(f"{self._path} cannot be decoded at frame {number}: {error}") from error


class ImageFrames(LabelledFrames):
    """A folder of images of one size with COCO annotations; the `file_name` of each image is in the folder."""

    def __init__(self, path: str, annotations: str, *, batch_size: int = 16, decode_ahead: int = 2) -> None:
        """Check the folder and the annotations.

        Raises:
            DataError: when the folder, an image or the annotation file is missing or invalid.
        """
        folder = resolve(path)
        labels = read_annotations(resolve(annotations))
        if not folder.is_dir():
            raise DataError(f"there is no folder of images at {folder}. Set data.path to one")
        missing = [name for name, _ in labels if not (folder / name).is_file()]
        if missing:
            raise DataError(
                f"{folder} lacks {len(missing)} of the {len(labels)} annotated images, the first is {missing[0]}"
            )
        sizes = {targets.size for _, targets in labels}
        if len(sizes) > 1:
            raise DataError(f"{folder}: all images must have one size, found {sorted(sizes)}")
        frames = _ImageFolder(folder, [name for name, _ in labels])
        super().__init__(frames, labels, batch_size=batch_size, decode_ahead=decode_ahead, origin=folder)


class _ImageFolder:
    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names

    def __iter__(self) -> Iterator[Frame]:
        for number, name in enumerate(self._names):
            try:
                with Image.open(self._folder / name) as image:
                    yield np.asarray(image.convert("RGB"), dtype=np.uint8)
            except (OSError, UnidentifiedImageError) as error:
                raise DataError(
                    f"{self._folder / name} (frame {number}) cannot be read as an image: {error}"
                ) from error
