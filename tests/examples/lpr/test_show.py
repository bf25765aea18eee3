from pathlib import Path

import av
import numpy as np
import pytest
from lpr.data import VideoFrames
from lpr.pipeline import Reading
from lpr.show import GREEN, GREY, RED, draw_frame, main
from PIL import Image


def test_boxes_and_readings_are_drawn_in_their_colours(clip: Path) -> None:
    (batch,) = VideoFrames(str(clip), str(clip.with_suffix(".json")), batch_size=8)
    number, index = next(
        (n, int(i)) for n, t in enumerate(batch.targets) for i in np.flatnonzero(t.readable_N & ~t.ignore_N)
    )
    frame, targets = batch.data[number].permute(1, 2, 0).numpy(), batch.targets[number]
    reading = Reading(
        vehicle_box=targets.vehicles_N4[index].tolist(),
        vehicle_score=0.9,
        plate_box=targets.plates_N4[index].tolist(),
        plate_score=0.9,
        text=targets.texts[index],
        text_score=0.9,
    )
    right = np.asarray(draw_frame(frame, [reading], targets))
    wrong = np.asarray(draw_frame(frame, [{**reading, "text": "ZZZ"}], targets))
    missed = np.asarray(draw_frame(frame, [], targets))
    x0, y0, x1, _ = (int(v) for v in reading["vehicle_box"])
    assert (right[min(y0 + 1, 431), (x0 + x1) // 2] == GREEN).all() or (right[y0, (x0 + x1) // 2] == GREEN).all()
    assert not (right == RED).all(axis=-1).any()
    assert (wrong == RED).all(axis=-1).any()
    assert (missed == GREY).all(axis=-1).sum() > 50


@pytest.mark.slow
def test_a_video_and_a_still_are_written(clip: Path, tmp_path: Path) -> None:
    stills = list[bytes]()
    for wanted in ("0", "2"):
        main(["--video", str(clip), "--folder", str(tmp_path), "--limit", "3", "--still", wanted])
        with Image.open(tmp_path / "shown.png") as still:
            assert still.size == (768, 432)
            stills.append(still.tobytes())
    assert stills[0] != stills[1]
    with av.open(str(tmp_path / "shown.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
