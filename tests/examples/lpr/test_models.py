import pytest
import torch
from lpr.models import (
    BLANK,
    PLATE_INPUT,
    READER_INPUT,
    VEHICLE_INPUT,
    PlateDetector,
    PlateReader,
    VehicleDetector,
    decode_boxes,
    peaks,
    read_greedily,
)
from lpr.plates import ALPHABET


def test_shapes() -> None:
    with torch.inference_mode():
        assert VehicleDetector().eval()(torch.zeros(2, 3, *VEHICLE_INPUT)).shape == (2, 5, 54, 96)
        assert PlateDetector().eval()(torch.zeros(3, 3, *PLATE_INPUT)).shape == (3, 5, 32, 32)
        assert PlateReader().eval()(torch.zeros(2, 3, *READER_INPUT)).shape == (2, 48, len(ALPHABET) + 1)


def test_the_reader_sees_no_difference_in_brightness_or_contrast() -> None:
    torch.manual_seed(0)
    reader = PlateReader().eval()
    plate = torch.rand(1, 3, *READER_INPUT) * 100
    with torch.inference_mode():
        assert torch.allclose(reader(plate), reader(plate * 1.7 + 30), atol=1e-3)


def test_boxes_and_peaks_of_a_hand_made_map() -> None:
    output = torch.full((1, 5, 4, 6), -6.0)
    output[0, 1:] = 0.0  # every distance is exp(0) strides
    output[0, 0, 1, 2], output[0, 0, 1, 3], output[0, 0, 3, 5] = 3.0, 2.0, 1.0
    assert decode_boxes(output, stride=4)[0, 1, 2].tolist() == [6.0, 2.0, 14.0, 10.0]
    score, boxes = peaks(output, count=2, stride=4)
    assert score[0].tolist() == pytest.approx(torch.tensor([3.0, 1.0]).sigmoid().tolist())  # 2.0 is not a peak
    assert boxes[0, 1].tolist() == [18.0, 10.0, 26.0, 18.0]


def test_greedy_reading_drops_blanks_and_repeats() -> None:
    steps = [BLANK, 10, 10, BLANK, 10, 1, 1, BLANK]
    logits = torch.full((2, len(steps), BLANK + 1), -20.0)
    for t, c in enumerate(steps):
        logits[0, t, c] = 20.0
    logits[1, :, BLANK] = 20.0
    texts, chances = read_greedily(logits)
    assert texts == ["AA1", ""]
    assert chances[0] == pytest.approx(1.0)
