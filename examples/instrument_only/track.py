"""Follows a bright spot through a clip: a program with its own loop and OpenTelemetry spans, without mlotel."""

import torch
from opentelemetry import trace
from torch.nn.functional import avg_pool2d

tracer = trace.get_tracer(__name__)


def track(clip_THW: torch.Tensor) -> torch.Tensor:
    """Return row and column of the spot in every frame, pixels, shape (T, 2)."""
    path = [torch.tensor([clip_THW.shape[1] / 2, clip_THW.shape[2] / 2])]
    for frame_HW in clip_THW:
        with tracer.start_as_current_span("detect"):
            smooth_HW = avg_pool2d(frame_HW[None, None], 5, stride=1, padding=2)[0, 0]
            strength_N, places_N = smooth_HW.flatten().topk(25)
            points_N2 = torch.stack([places_N // frame_HW.shape[1], places_N % frame_HW.shape[1]], dim=1).float()
        with tracer.start_as_current_span("associate"):
            distances_N = torch.linalg.vector_norm(points_N2 - path[-1], dim=1)
            weights_N = strength_N * torch.exp(-distances_N / 8)
            path.append((weights_N[:, None] * points_N2).sum(dim=0) / weights_N.sum())
    return torch.stack(path[1:])


if __name__ == "__main__":
    from clips import make_clips

    for clip, truth in make_clips(num_clips=5):
        print(f"{(track(clip) - truth).abs().mean():.2f} pixels off")
