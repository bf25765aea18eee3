"""The data sets of this example: their seeds, conditions and lengths, and a command that writes them to files.

    python -m lpr.datasets [validation night crowded selection]     writes data/<name>.mp4 and .json

The seeds of the sets are disjoint: each set has a range of 100,000.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from lpr.render import FPS, ClipSpec, render_clip
from lpr.road import HEIGHT, WIDTH
from lpr.writing import VideoWriter


@dataclass(frozen=True, slots=True)
class DataSet:
    """A set of clips.

    Attributes:
        first_seed: seed of the first clip; the others count up from it.
        conditions: conditions of the clips, in turn.
        num_clips: number of clips.
        num_frames: length of each clip.
        crowded: see `ClipSpec`.
        renew_text: see `ClipSpec`.
    """

    first_seed: int
    conditions: tuple[str, ...]
    num_clips: int
    num_frames: int
    crowded: bool = False
    renew_text: bool = False

    def clips(self) -> list[ClipSpec]:
        """Return the clips in order."""
        return [
            ClipSpec(
                seed=self.first_seed + i,
                condition=self.conditions[i % len(self.conditions)],
                num_frames=self.num_frames,
                crowded=self.crowded,
                renew_text=self.renew_text,
            )
            for i in range(self.num_clips)
        ]


ORDINARY = ("day", "dusk", "rain", "night")
DATA_SETS: dict[str, DataSet] = {
    "train": DataSet(100_000, ORDINARY, num_clips=1200, num_frames=5, renew_text=True),
    "selection": DataSet(200_000, ORDINARY, num_clips=48, num_frames=8),
    "validation": DataSet(300_000, ORDINARY, num_clips=20, num_frames=32),
    "night": DataSet(400_000, ("deep_night",), num_clips=6, num_frames=32),
    "crowded": DataSet(500_000, ORDINARY, num_clips=8, num_frames=24, crowded=True),
}


def write_data_set(name: str, folder: Path) -> Path:
    """Render the set `name` into `folder`; return the video's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.mp4"
    writer = VideoWriter(path, fps=FPS, width=WIDTH, height=HEIGHT)
    for number, spec in enumerate(DATA_SETS[name].clips()):
        for frame, truths in render_clip(spec):
            writer.write(frame, truths, condition=spec.condition, clip=number)
    writer.close()
    return path


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "data"
    for wanted in sys.argv[1:] or ["validation", "night", "crowded"]:
        print(write_data_set(wanted, target))
