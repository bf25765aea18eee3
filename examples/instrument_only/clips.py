"""Clips of a spot that moves through noise, with its positions: plain (data, targets) pairs."""

import torch


def make_clips(*, num_clips: int = 100, num_frames: int = 16, size: int = 64, seed: int = 0) -> list[tuple]:
    """Return pairs of a clip, shape (T, H, W), and the spot's row and column, shape (T, 2), in pixels."""
    draw = torch.Generator().manual_seed(seed)
    rows_HW, columns_HW = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pairs = []
    for _ in range(num_clips):
        steps_T2 = torch.randn(num_frames, 2, generator=draw).cumsum(dim=0) * 1.5
        truth_T2 = (steps_T2 + size / 2).clamp(4, size - 5)
        rows_THW = rows_HW - truth_T2[:, 0, None, None]
        columns_THW = columns_HW - truth_T2[:, 1, None, None]
        noise_THW = 0.2 * torch.rand(num_frames, size, size, generator=draw)
        pairs.append((torch.exp(-(rows_THW**2 + columns_THW**2) / 8) + noise_THW, truth_T2))
    return pairs
