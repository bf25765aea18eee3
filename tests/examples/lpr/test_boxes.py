import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lpr.boxes import crop, expand, iou, keep_best


def random_boxes(seed: int, count: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand((count, 2), generator=rng) * 60
    return torch.cat([corner, corner + 1 + torch.rand((count, 2), generator=rng) * 40], dim=1)


def test_iou_of_known_boxes() -> None:
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    b = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    assert iou(a, b)[0].tolist() == pytest.approx([1.0, 1 / 3, 0.0])


def test_iou_over_a_leading_axis() -> None:
    a, b = random_boxes(1, 6).reshape(2, 3, 4), random_boxes(2, 8).reshape(2, 4, 4)
    together = iou(a, b)
    assert together.shape == (2, 3, 4)
    assert torch.equal(together[1], iou(a[1], b[1]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 30), limit=st.floats(0.1, 0.9))
def test_keep_best_agrees_with_the_loop(seed: int, count: int, limit: float) -> None:
    boxes = random_boxes(seed, count)
    close = iou(boxes, boxes) > limit
    kept = list[int]()
    for i in range(count):
        if not any(close[j, i] for j in kept):
            kept.append(i)
    assert keep_best(close).nonzero()[:, 0].tolist() == kept


def test_expand_keeps_the_centre() -> None:
    assert expand(torch.tensor([[10.0, 20.0, 30.0, 30.0]]), width=1.5, height=2.0).tolist() == [[5.0, 15.0, 35.0, 35.0]]


def test_crop_at_native_size_returns_the_pixels() -> None:
    frames = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 5.0, 26.0, 13.0], [20.0, 30.0, 36.0, 38.0]])
    crops = crop(frames, boxes, torch.tensor([0, 1]), size=(8, 16))
    assert torch.allclose(crops[0], frames[0, :, 5:13, 10:26].float(), atol=1e-2)
    assert torch.allclose(crops[1], frames[1, :, 30:38, 20:36].float(), atol=1e-2)


def test_crop_outside_the_frame_repeats_the_border_and_no_box_gives_no_crop() -> None:
    frames = torch.arange(100, dtype=torch.uint8).reshape(1, 1, 10, 10)
    outside = crop(frames, torch.tensor([[-30.0, 0.0, -20.0, 10.0]]), torch.tensor([0]), size=(10, 10))
    assert torch.allclose(outside[0, 0, :, 0], frames[0, 0, :, 0].float(), atol=1e-2)
    assert crop(frames, torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), size=(4, 4)).shape == (0, 1, 4, 4)
