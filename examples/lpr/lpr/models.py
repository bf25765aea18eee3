"""The three networks: vehicles in a frame, a plate in a vehicle, characters in a plate.

They map pixels to tensors and do not know files, thresholds or mlotel. Normalisation (to -1..1) is part of the
networks, so that callers pass plain pixels.

Shapes: N items, C channels, H rows, W columns, T reading steps, A classes (alphabet and blank).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lpr.boxes import iou, keep_best
from lpr.plates import ALPHABET

VEHICLE_INPUT = (216, 384)
VEHICLE_STRIDE = 4
PLATE_INPUT = (128, 128)
PLATE_STRIDE = 4
READER_INPUT = (32, 96)
BLANK = len(ALPHABET)
MAX_VEHICLES = 48
MAX_OVERLAP = 0.6


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int | tuple[int, int] = 1) -> None:
        """Keep the size unless `stride` divides it."""
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )

    def fuse(self) -> None:
        """Merge the normalisation into the convolution; for evaluation only."""
        convolution, normalisation = self[0], self[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(normalisation, nn.BatchNorm2d)
        self[0] = fuse_conv_bn_eval(convolution, normalisation)
        self[1] = nn.Identity()


class Residual(nn.Module):
    """Two blocks around a shortcut."""

    def __init__(self, channels: int) -> None:
        """Keep channels and size."""
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = ConvBlock(channels, channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Add the blocks' output to the input."""
        return x_NCHW + self.second(self.first(x_NCHW))


def normalise(pixels: Tensor) -> Tensor:
    """Map 0..255 to -1..1, float32, in two passes over the pixels."""
    return (pixels * (2.0 / 255.0)).sub_(1.0)


class _CentreHead(nn.Module):
    """Predicts per cell the logit of a centre in it, and log distances to the four sides in strides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = ConvBlock(channels, channels)
        self.out = nn.Conv2d(channels, 5, 1)
        nn.init.constant_(self.out.bias[:1], -4.0)  # pyright: ignore[reportArgumentType]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.out(self.shared(x_NCHW))


class VehicleDetector(nn.Module):
    """Anchor-free detector on the frame at 384x216: a pyramid to stride 32 with its output at stride 4."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.stem = nn.Sequential(ConvBlock(3, 16, stride=2), ConvBlock(16, 32, stride=2))
        self.level4 = ConvBlock(32, 32)
        self.level8 = nn.Sequential(ConvBlock(32, 64, stride=2), Residual(64))
        self.level16 = nn.Sequential(ConvBlock(64, 96, stride=2), Residual(96))
        self.level32 = nn.Sequential(ConvBlock(96, 96, stride=2), Residual(96))
        self.lateral = nn.ModuleList([nn.Conv2d(c, 32, 1) for c in (32, 64, 96, 96)])
        self.head = _CentreHead(32)

    def forward(self, frames_N3HW: Tensor) -> Tensor:
        """Map frames at `VEHICLE_INPUT`, 0..255, to (N, 5, H/4, W/4): centre logit and four log distances."""
        x4 = self.level4(self.stem(normalise(frames_N3HW)))
        x8 = self.level8(x4)
        x16 = self.level16(x8)
        x32 = self.level32(x16)
        x = self.lateral[3](x32)
        for lateral, level in zip(reversed(self.lateral[:3]), (x16, x8, x4), strict=True):
            x = lateral(level) + F.interpolate(x, size=level.shape[-2:], mode="nearest")
        return self.head(x)


class PlateDetector(nn.Module):
    """Finds the one plate of a vehicle crop at 128x128; its output is at stride 4."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.level4 = nn.Sequential(ConvBlock(3, 16, stride=2), ConvBlock(16, 32, stride=2))
        self.level8 = nn.Sequential(ConvBlock(32, 64, stride=2), Residual(64))
        self.level16 = nn.Sequential(ConvBlock(64, 64, stride=2), Residual(64))
        self.lateral = nn.ModuleList([nn.Conv2d(c, 32, 1) for c in (32, 64, 64)])
        self.head = _CentreHead(32)

    def forward(self, crops_N3HW: Tensor) -> Tensor:
        """Map crops at `PLATE_INPUT`, 0..255, to (N, 5, H/4, W/4): centre logit and four log distances."""
        x4 = self.level4(normalise(crops_N3HW))
        x8 = self.level8(x4)
        x16 = self.level16(x8)
        x = self.lateral[2](x16)
        for lateral, level in zip(reversed(self.lateral[:2]), (x8, x4), strict=True):
            x = lateral(level) + F.interpolate(x, size=level.shape[-2:], mode="nearest")
        return self.head(x)


class PlateReader(nn.Module):
    """Reads a plate crop at 96x32 in two rows of steps, one after the other, so that two-line plates work too."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.features = nn.Sequential(
            ConvBlock(1, 32),
            ConvBlock(32, 48, stride=2),
            ConvBlock(48, 96, stride=(2, 1)),
            ConvBlock(96, 96),
            ConvBlock(96, 128, stride=2),
            Residual(128),
            ConvBlock(128, 128, stride=(2, 1)),
        )
        self.classify = nn.Conv2d(128, len(ALPHABET) + 1, 1)

    def forward(self, crops_N3HW: Tensor) -> Tensor:
        """Map crops at `READER_INPUT`, 0..255, to class logits (N, T, A): 24 steps of the upper row, then the lower."""
        grey = normalise(crops_N3HW).mean(dim=1, keepdim=True)
        spread = grey.std(dim=(2, 3), keepdim=True).clamp(min=0.02)
        grey = (grey - grey.mean(dim=(2, 3), keepdim=True)) / spread
        logits_NAHW = self.classify(self.features(grey))
        return logits_NAHW.flatten(2).transpose(1, 2)


def made_fast(network: nn.Module) -> nn.Module:
    """Merge normalisation into convolutions and store weights channels-last; in place, for evaluation only."""
    for module in network.modules():
        if isinstance(module, ConvBlock):
            module.fuse()
    return network.to(memory_format=torch.channels_last)


def decode_boxes(output_N5HW: Tensor, *, stride: int) -> Tensor:
    """Return the box of every cell, (N, H, W, 4), in input pixels."""
    rows, columns = output_N5HW.shape[-2:]
    device = output_N5HW.device
    y = (torch.arange(rows, device=device) + 0.5)[:, None] * stride
    x = (torch.arange(columns, device=device) + 0.5)[None, :] * stride
    left, top, right, bottom = output_N5HW[:, 1:].float().clamp(-4, 5).exp().mul(stride).unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


def peaks(output_N5HW: Tensor, *, count: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best maxima of the centre map: scores (N, count), descending, and boxes (N, count, 4)."""
    score = output_N5HW[:, :1].float().sigmoid()
    score = torch.where(F.max_pool2d(score, 3, stride=1, padding=1) == score, score, torch.zeros_like(score))
    best, place = score.flatten(1).topk(count, dim=1)
    boxes = decode_boxes(output_N5HW, stride=stride).flatten(1, 2)
    return best, boxes.gather(1, place[..., None].expand(-1, -1, 4))


def vehicles_of(output_N5HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return up to `MAX_VEHICLES` boxes per frame, (N, K, 4), after their scores (N, K).

    Scores are descending, except that they are 0 where a better box covers the box.
    """
    score_NK, boxes_NK4 = peaks(output_N5HW, count=MAX_VEHICLES, stride=VEHICLE_STRIDE)
    keep_NK = keep_best(iou(boxes_NK4, boxes_NK4) > MAX_OVERLAP)
    return score_NK * keep_NK, boxes_NK4


def read_greedily(logits_NTA: Tensor) -> tuple[list[str], list[float]]:
    """Return texts and their probabilities: best class per step, without repeats and blanks. Synchronises the GPU."""
    best = logits_NTA.float().log_softmax(-1).max(-1)
    classes_NT = best.indices.cpu()
    chance = best.values.sum(1).exp().cpu().tolist()
    new = torch.ones_like(classes_NT, dtype=torch.bool)
    new[:, 1:] = classes_NT[:, 1:] != classes_NT[:, :-1]
    texts = [
        "".join(ALPHABET[c] for c in row[keep].tolist())
        for row, keep in zip(classes_NT, new & (classes_NT != BLANK), strict=True)
    ]
    return texts, chance
