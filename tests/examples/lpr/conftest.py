"""Puts the example on sys.path, as `mlotel eval -cd examples/lpr/conf` does, and renders a short clip for all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

EXAMPLE = Path(__file__).parents[3] / "examples" / "lpr"
sys.path.insert(0, str(EXAMPLE))

if TYPE_CHECKING:
    from lpr.composing import Truth

NUM_FRAMES = 5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def rendered() -> "list[tuple[object, list[Truth]]]":
    """Return frames and truths of a short clip in daylight."""
    from lpr.render import ClipSpec, render_clip

    return list(render_clip(ClipSpec(seed=3, condition="day", num_frames=NUM_FRAMES)))


@pytest.fixture(scope="session")
def clip(rendered: "list[tuple[object, list[Truth]]]", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the clip as an mp4 with its annotations beside it; return the path."""
    from lpr.road import HEIGHT, WIDTH
    from lpr.writing import VideoWriter

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = VideoWriter(path, fps=10, width=WIDTH, height=HEIGHT, crf=18)
    for frame, truths in rendered:
        writer.write(frame, truths, condition="day", clip=0)
    writer.close()
    return path
