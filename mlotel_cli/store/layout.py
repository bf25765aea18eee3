"""The names of what a run directory holds: its files, its tables and their parts."""

import re
from pathlib import Path

RUN_JSON = "run.json"
BATCHES = "batches.parquet"
"""Folder of a table's parts: one row a batch."""
SPANS = "spans.parquet"
"""The same: one row a span."""
SAMPLES = "samples.parquet"
"""The same: one row a sample."""
HYDRA = ".hydra"
"""Folder of the configuration: config.yaml, hydra.yaml and overrides.yaml."""
WORKLOAD_LOG = "mlotel.log"
RECORDER_LOG = "recorder.log"
STAGES_JSON = "stages.json"
"""What a profile says of each stage."""
PROFILE = "profile"
"""Name of a profiler's files, without suffix."""
PARTS = "part-*.parquet"
"""Pattern of the parts of a table."""
UNFINISHED_PARTS = ".part-*.tmp"
"""Pattern of parts that are being written, or whose writer was killed."""
_PART = re.compile(r"part-(\d+)(?:-(\d+))?\.parquet")


def part_name(first: int, last: int | None = None) -> str:
    """Return the name of part `first`, or of a merged part that covers the numbers `first` to `last`."""
    return f"part-{first:06d}.parquet" if last is None else f"part-{first:06d}-{last:06d}.parquet"


def part_numbers(part: Path) -> tuple[int, int]:
    """Return the first and last number that a part covers, by its name; (0, 0) for any other file."""
    match = _PART.fullmatch(part.name)
    return (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
