"""The detectors' targets, and the loss against them.

Shapes: N items, K boxes over all items, H rows and W columns of a centre map; boxes are x0, y0, x1, y1.
"""

import torch
from torch import Tensor

from lpr.models import decode_boxes


def centre_targets(
    boxes_K4: Tensor, frame_K: Tensor, *, shape: tuple[int, int, int], stride: int
) -> tuple[Tensor, Tensor]:
    """Return the target of a centre head.

    Args:
        boxes_K4: boxes in input pixels.
        frame_K: the item of each box.
        shape: items, rows, columns of the head's output.
        stride: input pixels per cell.

    Returns:
        The centre map (N, H, W), which is 1 at a box's central cell and falls off around it, and the nearest box of
        each cell (N, H, W, 4).
    """
    items, rows, columns = shape
    heat, nearest = torch.zeros(shape), torch.zeros((*shape, 4))
    if not len(boxes_K4):
        return heat, nearest
    cells = boxes_K4 / stride
    centre = (cells[:, :2] + cells[:, 2:]) / 2
    column = centre[:, 0].floor().clamp(0, columns - 1)
    row = centre[:, 1].floor().clamp(0, rows - 1)
    spread = ((cells[:, 2:] - cells[:, :2]) / 7).clamp(min=0.45)
    dx = (torch.arange(columns)[None] - column[:, None]) / spread[:, :1]
    dy = (torch.arange(rows)[None] - row[:, None]) / spread[:, 1:]
    bumps_KHW = torch.exp(-0.5 * (dx[:, None, :] ** 2 + dy[:, :, None] ** 2))
    for item in range(items):
        mine = (frame_K == item).nonzero()[:, 0]
        if len(mine):
            best = bumps_KHW[mine].max(0)
            heat[item] = best.values
            nearest[item] = boxes_K4[mine][best.indices]
    return heat, nearest


def detection_loss(
    output_N5HW: Tensor, heat_NHW: Tensor, nearest_NHW4: Tensor, weight_NHW: Tensor, *, stride: int
) -> Tensor:
    """Return the penalty-reduced focal loss of the centre map (CenterNet, Zhou et al. 2019) plus GIoU near centres."""
    logit = output_N5HW[:, 0].float()
    chance = logit.sigmoid().clamp(1e-4, 1 - 1e-4)
    positive = heat_NHW > 0.999
    count = positive.sum().clamp(min=1)
    hit = -((1 - chance) ** 2) * chance.log() * positive
    miss = -((1 - heat_NHW) ** 4) * chance**2 * (1 - chance).log() * (~positive) * weight_NHW
    near = heat_NHW > 0.4
    found, true = decode_boxes(output_N5HW, stride=stride)[near], nearest_NHW4[near]
    weights = heat_NHW[near]
    box = ((1 - giou(found, true)) * weights).sum() / weights.sum().clamp(min=1e-6)
    return (hit.sum() + miss.sum()) / count + 2.0 * box


def giou(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """Return the generalised IoU of each pair (Rezatofighi et al. 2019)."""
    low, high = torch.maximum(a_N4[:, :2], b_N4[:, :2]), torch.minimum(a_N4[:, 2:], b_N4[:, 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    area = (a_N4[:, 2:] - a_N4[:, :2]).prod(-1) + (b_N4[:, 2:] - b_N4[:, :2]).prod(-1) - inner
    hull = (torch.maximum(a_N4[:, 2:], b_N4[:, 2:]) - torch.minimum(a_N4[:, :2], b_N4[:, :2])).prod(-1)
    return inner / area.clamp(min=1e-6) - (hull - area) / hull.clamp(min=1e-6)
