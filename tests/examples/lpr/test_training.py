"""Targets, losses, augmentation, thresholds, and one short training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lpr.augment import cut_jittered, zoomed_frames
from lpr.losses import centre_targets, detection_loss, giou
from lpr.models import VEHICLE_INPUT, decode_boxes
from lpr.pipeline import NETWORKS, load_network
from lpr.render import ClipSpec
from lpr.tasks import TASKS, best_threshold, low_threshold, plates_in_cut, read_all
from lpr.train import needed_by, save
from lpr.training_data import CROP_PX, TrainingData, collect_chunk


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return collect_chunk([ClipSpec(seed=3, condition="day", num_frames=2, renew_text=True)])


def test_training_data_holds_what_the_frames_show(data: TrainingData) -> None:
    assert data.frames_N3HW.shape == (2, 3, *VEHICLE_INPUT)
    assert len(data.vehicles) == len(data.ignore) == 2
    assert len(data.crops_M3HW) == len(data.plates_M4) == sum(int((~i).sum()) for i in data.ignore)
    assert len(data.readings_P3HW) == len(data.texts) > 0
    there = ~np.isnan(data.plates_M4[:, 0])
    assert there.any()
    assert (data.plates_M4[there] > -CROP_PX * 0.3).all()
    for crop, (x0, y0, x1, y1) in zip(data.crops_M3HW[there], data.plates_M4[there].round().astype(int), strict=True):
        plate = crop[:, max(y0, 0) : y1, max(x0, 0) : x1].astype(float)
        assert plate.std() > 8  # characters on a ground


def test_each_network_gets_only_its_part(data: TrainingData) -> None:
    assert len(needed_by("plate_reader", data).frames_N3HW) == 0
    assert needed_by("plate_reader", data).texts == data.texts
    assert len(needed_by("vehicle_detector", data).frames_N3HW) == 2
    assert len(needed_by("plate_detector", data).readings_P3HW) == 0


def test_centre_targets_peak_in_the_middle_and_fall_off() -> None:
    boxes = torch.tensor([[8.0, 4.0, 40.0, 28.0], [60.0, 40.0, 64.0, 44.0]])
    heat, nearest = centre_targets(boxes, torch.tensor([1, 1]), shape=(2, 16, 24), stride=4)
    assert heat[0].max() == 0
    assert heat[1, 4, 6] == 1.0
    assert heat[1, 10, 15] == 1.0
    assert 0 < float(heat[1, 4, 7]) < 1.0
    assert nearest[1, 4, 7].tolist() == boxes[0].tolist()
    assert nearest[1, 10, 15].tolist() == boxes[1].tolist()


def test_the_loss_is_least_for_the_right_answer() -> None:
    boxes = torch.tensor([[8.0, 4.0, 40.0, 28.0]])
    heat, nearest = centre_targets(boxes, torch.tensor([0]), shape=(1, 8, 12), stride=4)
    right = torch.full((1, 5, 8, 12), -9.0)
    right[0, 0, 4, 6] = 9.0
    x, y = (torch.arange(12) + 0.5) * 4, (torch.arange(8)[:, None] + 0.5) * 4
    sides = torch.stack([(x - 8).expand(8, 12), (y - 4).expand(8, 12), (40 - x).expand(8, 12), (28 - y).expand(8, 12)])
    right[0, 1:] = (sides / 4).clamp(min=0.05).log()
    weight = torch.ones(1, 8, 12)
    assert torch.allclose(decode_boxes(right, stride=4)[0, 4, 6], boxes[0], atol=1e-3)
    best = detection_loss(right, heat, nearest, weight, stride=4)
    assert float(best) < 0.01
    shifted, silent = right.clone(), right.clone()
    shifted[0, 1] += 0.5
    silent[0, 0] = -9.0
    assert detection_loss(shifted, heat, nearest, weight, stride=4) > best + 0.1
    assert detection_loss(silent, heat, nearest, weight, stride=4) > best + 1
    extra = right.clone()
    extra[0, 0, 0, 0] = 9.0
    assert detection_loss(extra, heat, nearest, weight, stride=4) > best + 1
    weight[0, 0, 0] = 0
    assert detection_loss(extra, heat, nearest, weight, stride=4) == pytest.approx(float(best), abs=1e-4)


def test_giou_of_known_pairs() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 3.0, 1.0]])
    assert giou(a, b).tolist() == pytest.approx([1.0, -1 / 3])


def test_a_cut_shows_what_its_mapping_says() -> None:
    images = torch.zeros(1, 1, CROP_PX, CROP_PX)
    images[0, 0, 80:90, 60:90] = 255
    cuts, mapping = cut_jittered(images, np.random.default_rng(5), size=(128, 128), shift=0.06, zoom=0.12)
    x0, y0, x1, y1 = plates_in_cut(torch.tensor([[60.0, 80.0, 90.0, 90.0]]), mapping)[0].tolist()
    rows, columns = (cuts[0, 0] > 127).nonzero(as_tuple=True)
    assert (int(columns.min()), int(rows.min())) == (pytest.approx(x0, abs=1), pytest.approx(y0, abs=1))
    assert (int(columns.max()) + 1, int(rows.max()) + 1) == (pytest.approx(x1, abs=1), pytest.approx(y1, abs=1))


def test_a_plate_that_left_the_cut_is_gone() -> None:
    still = torch.tensor([[0.8, 0.8, 0.0, 0.0]])
    assert plates_in_cut(torch.tensor([[60.0, 80.0, 90.0, 90.0]]), still)[0].tolist() == [44.0, 64.0, 74.0, 74.0]
    assert plates_in_cut(torch.tensor([[0.0, 80.0, 20.0, 90.0]]), still).isnan().all()
    assert plates_in_cut(torch.tensor([[150.0, 80.0, 160.0, 90.0]]), still).isnan().all()


def test_boxes_follow_a_zoomed_frame() -> None:
    height, width = VEHICLE_INPUT
    frame = np.zeros((1, 3, height, width), dtype=np.uint8)
    frame[0, :, 60:140, 150:250] = 255
    one = TrainingData(
        frames_N3HW=frame,
        vehicles=[np.array([[150.0, 60.0, 250.0, 140.0]], dtype=np.float32)],
        ignore=[np.array([False])],
        crops_M3HW=frame[:0], plates_M4=np.zeros((0, 4), np.float32), readings_P3HW=frame[:0], texts=[],
    )  # fmt: skip
    for seed in range(6):
        images, boxes, ignored, frames = zoomed_frames(one, np.array([0]), np.random.default_rng(seed))
        rows, columns = (images[0, 0] > 127).nonzero(as_tuple=True)
        shown = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        assert boxes[0].tolist() == pytest.approx(shown, abs=1.0)
        assert not ignored[0]
        assert frames.tolist() == [0]


def test_thresholds() -> None:
    scores, hits = [0.9, 0.8, 0.7, 0.6, 0.5], [True, True, False, True, False]
    assert best_threshold(scores, hits, 3) == (0.6, pytest.approx(6 / 7))
    assert low_threshold(scores, hits, precision=0.75) == 0.6
    assert low_threshold(scores, hits, precision=0.6) == 0.5
    assert low_threshold([0.9], [False], precision=0.6) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_few_steps_lower_the_loss_and_weights_survive_saving(name: str, data: TrainingData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    loss, score = TASKS[name](data, data)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    values = list[float]()
    for _ in range(6):
        value = loss(network, np.random.default_rng(1), 2)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.8 * values[0]
    save(name, network, tmp_path)
    network.eval()
    again = load_network(name, tmp_path)
    for key, value in again.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.allclose(value, network.state_dict()[key], atol=2e-3, rtol=2e-3), key
    with torch.inference_mode():
        assert 0.0 <= score(network) <= 1.0
        if name == "plate_reader":
            assert len(list(read_all(network, data))) == len(data.texts)
