"""Random changes of training images: light, position, size, mirroring.

All randomness comes from the given numpy generator. Shapes: N images, C channels, H rows, W columns.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lpr.models import VEHICLE_INPUT
from lpr.training_data import TrainingData


def jitter_light(images_NCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness and colour of each image, 0..255."""
    n = len(images_NCHW)
    gain = torch.from_numpy(
        rng.uniform(0.7, 1.3, (n, 1, 1, 1)) * rng.uniform(0.94, 1.06, (n, images_NCHW.shape[1], 1, 1))
    )
    shift = torch.from_numpy(rng.uniform(-16, 16, (n, 1, 1, 1)))
    return (images_NCHW * gain.float() + shift.float()).clamp(0, 255)


def cut_jittered(
    images_NCHW: Tensor,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    shift: float,
    zoom: float,
    turn: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cut the middle of each image with a random error, like that of a predicted box.

    Args:
        images_NCHW: images with a margin around the cut.
        rng: source of the errors.
        size: rows and columns of the cut.
        shift: largest error of position, as a share of the cut.
        zoom: largest error of size, as a share.
        turn: largest shear of rows against columns.

    Returns:
        The cuts, and per image the map from cut to image as (scale x, scale y, shift x, shift y) in -1..1.
    """
    n = len(images_NCHW)
    ratio = np.array([size[1] / images_NCHW.shape[3], size[0] / images_NCHW.shape[2]])
    scale = ratio * rng.uniform(1 - zoom, 1 + zoom, (n, 2))
    move = rng.uniform(-shift, shift, (n, 2)) * scale * 2
    theta = torch.zeros((n, 2, 3))
    theta[:, 0, 0], theta[:, 1, 1] = torch.from_numpy(scale[:, 0]), torch.from_numpy(scale[:, 1])
    theta[:, 0, 2], theta[:, 1, 2] = torch.from_numpy(move[:, 0]), torch.from_numpy(move[:, 1])
    theta[:, 1, 0] = torch.from_numpy(rng.uniform(-turn, turn, n) * scale[:, 1])
    grid = F.affine_grid(theta, [n, images_NCHW.shape[1], *size], align_corners=False)
    cuts = F.grid_sample(images_NCHW, grid, padding_mode="border", align_corners=False)
    return cuts, torch.from_numpy(np.concatenate([scale, move], axis=1)).float()


def zoomed_frames(
    data: TrainingData, chosen: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mirror and zoom each chosen frame at random; return frames, boxes, ignored boxes, and each box's frame."""
    height, width = VEHICLE_INPUT
    images = torch.from_numpy(data.frames_N3HW[chosen]).float()
    zoom = rng.uniform(0.75, 1.1, len(chosen))
    room = np.abs(1 - zoom)
    move = np.stack([rng.uniform(-room, room), rng.uniform(-room, room)], axis=1)
    sign = np.where(rng.random(len(chosen)) < 0.5, -1.0, 1.0)
    theta = torch.zeros((len(chosen), 2, 3))
    theta[:, 0, 0], theta[:, 1, 1] = torch.from_numpy(zoom * sign), torch.from_numpy(zoom)
    theta[:, :, 2] = torch.from_numpy(move)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    boxes_all, ignored_all, frame_all = list[Tensor](), list[Tensor](), list[Tensor]()
    for item, index in enumerate(chosen):
        boxes = torch.from_numpy(data.vehicles[index]).clone()
        size = torch.tensor([width, height] * 2)
        place = boxes / size * 2 - 1
        place = (place - torch.from_numpy(np.tile(move[item], 2)).float()) / float(zoom[item])
        if sign[item] < 0:
            place = place[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1.0, -1.0, 1.0])
        boxes = (place + 1) / 2 * size
        area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        boxes = torch.minimum(boxes.clamp(min=0), size)
        inner = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        inside = inner > 1
        boxes_all.append(boxes[inside])
        ignored_all.append((torch.from_numpy(data.ignore[index]) | (inner < 0.3 * area))[inside])
        frame_all.append(torch.full((int(inside.sum()),), item))
    return images, torch.cat(boxes_all), torch.cat(ignored_all), torch.cat(frame_all)
