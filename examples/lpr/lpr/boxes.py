"""Functions of boxes as tensors: overlap, suppression of duplicates, crops. They work on any device.

Shapes: B frames, K boxes over all frames of a batch, C channels, H rows, W columns; boxes are x0, y0, x1, y1 in pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def iou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """Return the intersection over union of every pair, (..., N, M)."""
    low = torch.maximum(a_N4[..., :, None, :2], b_M4[..., None, :, :2])
    high = torch.minimum(a_N4[..., :, None, 2:], b_M4[..., None, :, 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    area_a = (a_N4[..., 2:] - a_N4[..., :2]).clamp(min=0).prod(-1)
    area_b = (b_M4[..., 2:] - b_M4[..., :2]).clamp(min=0).prod(-1)
    return inner / (area_a[..., :, None] + area_b[..., None, :] - inner).clamp(min=1e-6)


def keep_best(overlaps_KK: Tensor) -> Tensor:
    """Suppress duplicates greedily, by a fixed-point iteration in place of a loop over boxes.

    Args:
        overlaps_KK: (..., K, K) bool, whether two boxes are too close; boxes are sorted, best first.

    Returns:
        (..., K) bool: which boxes stay, the same as with the usual loop.
    """
    earlier = torch.triu(overlaps_KK, diagonal=1)
    keep = torch.ones(overlaps_KK.shape[:-1], dtype=torch.bool, device=overlaps_KK.device)
    for _ in range(overlaps_KK.shape[-1]):
        updated = ~(earlier & keep[..., :, None]).any(-2)
        if torch.equal(updated, keep):
            break
        keep = updated
    return keep


def expand(boxes_K4: Tensor, *, width: float, height: float) -> Tensor:
    """Scale boxes around their centres by two factors."""
    centre = (boxes_K4[:, :2] + boxes_K4[:, 2:]) / 2
    half = (boxes_K4[:, 2:] - boxes_K4[:, :2]) / 2 * boxes_K4.new_tensor([width, height])
    return torch.cat([centre - half, centre + half], dim=1)


def crop(frames_BCHW: Tensor, boxes_K4: Tensor, frame_K: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Cut boxes out of frames and resize them to one size, bilinearly.

    Args:
        frames_BCHW: uint8 or float frames.
        boxes_K4: boxes in pixels; outside the frame its border is repeated.
        frame_K: int64, the frame of each box, ascending.
        size: rows and columns of a crop.

    Returns:
        (K, C, rows, columns) float32, in the frames' own range.
    """
    _, channels, height, width = frames_BCHW.shape
    rows, columns = size
    if not len(boxes_K4):
        return frames_BCHW.new_zeros((0, channels, rows, columns), dtype=torch.float32)
    scale = boxes_K4.new_tensor([2.0 / width, 2.0 / height, 2.0 / width, 2.0 / height])
    left, top, right, bottom = (boxes_K4 * scale - 1.0).unbind(1)
    theta = torch.zeros((len(boxes_K4), 2, 3), device=boxes_K4.device)
    theta[:, 0, 0], theta[:, 0, 2] = (right - left) / 2, (right + left) / 2
    theta[:, 1, 1], theta[:, 1, 2] = (bottom - top) / 2, (bottom + top) / 2
    grid_KHW2 = F.affine_grid(theta, [len(boxes_K4), channels, rows, columns], align_corners=False)
    pieces = list[Tensor]()
    counts = torch.bincount(frame_K, minlength=len(frames_BCHW)).tolist()
    for frame_CHW, grid in zip(frames_BCHW, grid_KHW2.split(counts), strict=True):
        if len(grid):
            image = frame_CHW.float().unsqueeze(0).expand(len(grid), -1, -1, -1)
            pieces.append(F.grid_sample(image, grid, padding_mode="border", align_corners=False))
    return torch.cat(pieces)
