import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from lpr.composing import Truth
from lpr.data import ImageFrames, VideoFrames, read_annotations
from PIL import Image

from mlotel_cli.errors import DataError, MlotelError, UsageError


def labels(path: Path) -> Path:
    return path.with_suffix(".json")


def edited(clip: Path, tmp_path: Path, change: Any) -> str:
    """Write the clip's annotations after `change(document)`; return the path."""
    document = json.loads(labels(clip).read_text())
    change(document)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_video_comes_back_as_batches(clip: Path, rendered: list[tuple[np.ndarray, list[Truth]]]) -> None:
    data = VideoFrames(str(clip), str(labels(clip)), batch_size=2)
    batches = list(data)
    assert [b.size for b in batches] == [2, 2, 1]
    assert len(data) == 3
    assert [b.index for b in batches] == [0, 1, 2]
    assert [i for b in batches for i in b.ids] == [f"frame_{n:05d}" for n in range(5)]
    frames = torch.cat([b.data for b in batches])
    assert frames.dtype == torch.uint8
    original = torch.from_numpy(np.stack([frame for frame, _ in rendered])).permute(0, 3, 1, 2)
    assert (frames.float() - original.float()).abs().mean() < 6  # what H.264 loses
    for targets, (_, truths) in zip([t for b in batches for t in b.targets], rendered, strict=True):
        assert np.allclose(targets.vehicles_N4, np.array([t.box for t in truths]).reshape(-1, 4), atol=0.11)
        assert targets.readable_N.tolist() == [t.readable for t in truths]
        assert [t for t in targets.texts if t] == [t.text for t in truths if t.plate_box is not None]
        assert targets.condition == "day"


def test_every_iteration_starts_at_the_first_frame(clip: Path) -> None:
    data = VideoFrames(str(clip), str(labels(clip)), batch_size=4)
    next(iter(data))
    first, second = list(data), list(data)
    assert all(torch.equal(a.data, b.data) for a, b in zip(first, second, strict=True))
    data.close()


def test_images_give_the_same_frames(clip: Path, tmp_path: Path) -> None:
    video = next(iter(VideoFrames(str(clip), str(labels(clip)), batch_size=5)))
    for name, frame in zip(video.ids, video.data, strict=True):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")

    def rename(document: Any) -> None:
        for image in document["images"]:
            image["file_name"] += ".png"

    images = next(iter(ImageFrames(str(tmp_path), edited(clip, tmp_path, rename), batch_size=5)))
    assert torch.equal(images.data, video.data)
    assert np.array_equal(images.targets[0].vehicles_N4, video.targets[0].vehicles_N4)


def fails(error: type[MlotelError], *words: str, make: Any) -> None:
    with pytest.raises(error) as caught:
        list(make())
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_empty_and_foreign_video_files(clip: Path, tmp_path: Path) -> None:
    annotations = str(labels(clip))
    fails(DataError, "nowhere.mp4", "data.path", make=lambda: VideoFrames("nowhere.mp4", annotations))
    empty = tmp_path / "empty.mp4"
    empty.touch()
    fails(DataError, "empty.mp4", "0 bytes", make=lambda: VideoFrames(str(empty), annotations))
    fails(DataError, "edited.json", make=lambda: VideoFrames(edited(clip, tmp_path, lambda d: None), annotations))
    fails(UsageError, "batch_size", "0", make=lambda: VideoFrames(str(clip), annotations, batch_size=0))


def test_a_truncated_video_names_the_file_and_keeps_its_good_batches(clip: Path, tmp_path: Path) -> None:
    # An mp4 cut short has lost its index: another container plays up to the cut.
    stream = tmp_path / "whole.ts"
    with av.open(str(clip)) as source, av.open(str(stream), "w") as target:
        video = source.streams.video[0]
        copy = target.add_stream_from_template(video)
        for packet in source.demux(video):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    cut = tmp_path / "cut.ts"
    cut.write_bytes(stream.read_bytes()[: stream.stat().st_size // 2])
    data = VideoFrames(str(cut), str(labels(clip)), batch_size=1)
    good = list[str]()
    with pytest.raises(DataError, match=r"cut\.ts.*frame"):
        good.extend(batch.ids[0] for batch in data)
    assert good[:1] == ["frame_00000"]
    assert len(good) < 5
    short = tmp_path / "short.mp4"
    short.write_bytes(clip.read_bytes()[:-2000])
    fails(DataError, "short.mp4", make=lambda: VideoFrames(str(short), str(labels(clip))))


def test_another_codec_is_refused(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "raw.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    fails(DataError, "raw.avi", "mjpeg", "h264", make=lambda: VideoFrames(str(path), str(labels(clip))))


def test_more_or_fewer_frames_than_annotated(clip: Path, tmp_path: Path) -> None:
    def drop(document: Any) -> None:
        last = document["images"].pop()["id"]
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] != last]

    def add(document: Any) -> None:
        document["images"].append({**document["images"][0], "id": 99})

    fails(DataError, "more frames than the 4", make=lambda: VideoFrames(str(clip), edited(clip, tmp_path, drop)))
    fails(DataError, "after 5 frames", "6 images", make=lambda: VideoFrames(str(clip), edited(clip, tmp_path, add)))


def test_wrong_annotations_name_file_and_frame(clip: Path, tmp_path: Path) -> None:
    def annotation(**fields: Any) -> Any:
        return lambda document: document["annotations"][0].update(fields)

    def image(**fields: Any) -> Any:
        return lambda document: document["images"][0].update(fields)

    cases: list[tuple[Any, tuple[str, ...]]] = [
        (annotation(bbox=[700, 10, 200, 50]), ("outside the frame of 768x432", "frame_00000")),
        (annotation(bbox=[1, 2, 0, 5]), ("empty", "frame_00000")),
        (annotation(bbox="big"), ("'big'", "frame_00000")),
        (annotation(plate_bbox=[-50, 0, 20, 5]), ("outside the frame", "frame_00000")),
        (annotation(text="AB?12"), ("'AB?12'", "unknown characters '?'", "frame_00000")),
        (annotation(image_id=77), ("image 77", "not listed")),
        (image(width=None), ("width and height", "frame_00000")),
        (lambda d: d.pop("images"), ("'images'",)),
        (lambda d: d["images"].clear() or d["annotations"].clear(), ("no images",)),
        (lambda d: d["images"].append(d["images"][0]), ("same id",)),
    ]
    for change, words in cases:
        path = Path(edited(clip, tmp_path, change))
        with pytest.raises(DataError) as caught:
            read_annotations(path)
        for word in ("edited.json", *words):
            assert word in str(caught.value)
    fails(DataError, "frame 0 (frame_00000) is 768x432", "640x432",
          make=lambda: VideoFrames(str(clip), edited(clip, tmp_path, lambda d: _resize(d))))  # fmt: skip


def _resize(document: Any) -> None:
    document["images"][0]["width"] = 640
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != document["images"][0]["id"]]


def test_annotations_that_are_no_json_or_missing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    fails(DataError, "broken.json is not JSON", make=lambda: read_annotations(broken))
    fails(DataError, "absent.json", "data.annotations", make=lambda: read_annotations(tmp_path / "absent.json"))
    broken.write_text("[]")
    fails(DataError, "not a COCO document", make=lambda: read_annotations(broken))


def test_bad_image_folders(clip: Path, tmp_path: Path) -> None:
    annotations = str(labels(clip))
    fails(DataError, "no folder", make=lambda: ImageFrames(str(tmp_path / "absent"), annotations))
    fails(DataError, "lacks 5 of the 5", "frame_00000", make=lambda: ImageFrames(str(tmp_path), annotations))
    for n in range(5):
        shutil.copy(labels(clip), tmp_path / f"frame_{n:05d}")
    fails(DataError, "frame_00000", "frame 0", make=lambda: ImageFrames(str(tmp_path), annotations))
