"""The pipeline with the committed weights, on a short clip."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from lpr.boxes import iou
from lpr.data import VideoFrames
from lpr.metrics import VehicleAP50
from lpr.models import VEHICLE_INPUT
from lpr.pipeline import LicencePlatePipeline, Scene, from_crop, shrink

from mlotel_cli.errors import DataError

WEIGHTS = Path(__file__).parents[3] / "examples" / "lpr" / "weights"


@pytest.fixture(scope="module")
def pipeline() -> LicencePlatePipeline:
    return LicencePlatePipeline()


def run(pipeline: LicencePlatePipeline, data: Any) -> Any:
    for stage in pipeline.stages.values():
        data = stage(data)
    return data


def test_the_clip_is_read_frame_by_frame(pipeline: LicencePlatePipeline, clip: Path) -> None:
    (batch,) = VideoFrames(str(clip), str(clip.with_suffix(".json")), batch_size=8)
    assert list(pipeline.stages) == ["vehicle_detector", "plate_detector", "plate_reader"]
    output = run(pipeline, batch.data)
    assert len(output) == batch.size
    metric = VehicleAP50()
    metric.update(output, batch.targets)
    assert metric.compute() > 0.5
    for reading in (r for frame in output for r in frame):
        assert (reading["plate_box"] is None) == (reading["plate_score"] == 0.0)
    assert json.loads(json.dumps(output)) == output


def test_an_empty_road_gives_empty_lists(pipeline: LicencePlatePipeline) -> None:
    assert run(pipeline, torch.full((2, 3, 432, 768), 90, dtype=torch.uint8)) == [[], []]


def test_no_plate_above_the_threshold_leaves_vehicles_unread(clip: Path) -> None:
    (batch,) = VideoFrames(str(clip), str(clip.with_suffix(".json")), batch_size=8)
    output = run(LicencePlatePipeline(plate_threshold=1.1), batch.data)
    assert any(output)
    assert all(r["text"] == "" and r["plate_box"] is None for frame in output for r in frame)


def test_a_frame_of_another_size_gives_boxes_in_its_own_pixels(pipeline: LicencePlatePipeline, clip: Path) -> None:
    (batch,) = VideoFrames(str(clip), str(clip.with_suffix(".json")), batch_size=8)
    large = torch.nn.functional.interpolate(batch.data.float(), scale_factor=1.5).to(torch.uint8)
    scene: Scene = pipeline.stages["vehicle_detector"](large)
    original: Scene = pipeline.stages["vehicle_detector"](batch.data)
    overlap = iou(scene.vehicles_K4 / 1.5, original.vehicles_K4)[:, original.vehicle_score_K > 0.5]
    same = (scene.frame_K[:, None] == original.frame_K[None])[:, original.vehicle_score_K > 0.5]
    assert (overlap * same).max(dim=0).values.min() > 0.8


def test_the_frames_of_a_batch_do_not_touch_each_other(pipeline: LicencePlatePipeline, clip: Path) -> None:
    (batch,) = VideoFrames(str(clip), str(clip.with_suffix(".json")), batch_size=8)
    together = run(pipeline, batch.data)
    alone = [run(pipeline, batch.data[i : i + 1])[0] for i in range(batch.size)]
    assert [[r["text"] for r in frame] for frame in together] == [[r["text"] for r in frame] for frame in alone]
    for a, b in zip(together, alone, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x["vehicle_box"] == pytest.approx(y["vehicle_box"], abs=0.2)


def test_stages_run_on_threads_of_their_own(pipeline: LicencePlatePipeline, clip: Path) -> None:
    (batch,) = VideoFrames(str(clip), str(clip.with_suffix(".json")), batch_size=8)
    expected = run(pipeline, batch.data)
    data: Any = batch.data
    for stage in pipeline.stages.values():
        with ThreadPoolExecutor(1) as thread:
            data = thread.submit(stage, data).result()
    assert data == expected


def test_shrink_averages_and_from_crop_inverts() -> None:
    frames = torch.arange(432 * 768, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(1, 1, 432, 768)
    mean = frames[0, 0, 6:8, 10:12].float().mean()
    assert abs(float(shrink(frames)[0, 0, 3, 5]) - float(mean)) <= 1.0
    assert shrink(torch.zeros(1, 3, 500, 333, dtype=torch.uint8)).shape[-2:] == VEHICLE_INPUT
    area = torch.tensor([[100.0, 50.0, 228.0, 114.0]])
    assert from_crop(torch.tensor([[64.0, 64.0, 128.0, 128.0]]), area)[0].tolist() == [164.0, 82.0, 228.0, 114.0]


def test_weights_fit_in_five_megabytes() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 5e6


def test_missing_foreign_or_broken_weights_are_named(tmp_path: Path) -> None:
    for path in WEIGHTS.iterdir():
        shutil.copy(path, tmp_path)
    reader = tmp_path / "plate_reader.safetensors"
    shutil.copy(tmp_path / "plate_detector.safetensors", reader)
    with pytest.raises(DataError, match=r"plate_reader\.safetensors does not fit plate_reader"):
        LicencePlatePipeline(str(tmp_path))
    reader.write_bytes(b"not weights")
    with pytest.raises(DataError, match=r"cannot read weights .*plate_reader"):
        LicencePlatePipeline(str(tmp_path))
    reader.unlink()
    with pytest.raises(DataError, match=r"plate_reader.*python -m lpr\.train"):
        LicencePlatePipeline(str(tmp_path))
    (tmp_path / "operating_point.json").write_text("{}")
    with pytest.raises(DataError, match=r"thresholds .*operating_point"):
        LicencePlatePipeline(str(tmp_path))
