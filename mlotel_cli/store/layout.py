"""What lies in a run directory: the names of its files, of its tables and of their parts."""

import re
from pathlib import Path

RUN_JSON = "run.json"
BATCHES = "batches.parquet"
"""A table is a folder of parts; this one has a row a batch."""
SPANS = "spans.parquet"
SAMPLES = "samples.parquet"
HYDRA = ".hydra"
"""Folder of the configuration: config.yaml, hydra.yaml and overrides.yaml."""
WORKLOAD_LOG = "mlotel.log"
RECORDER_LOG = "recorder.log"
STAGES_JSON = "stages.json"
"""A profile in figures."""
PROFILE = "profile"
"""Name of a profiler's files, without suffix."""
PARTS = "part-*.parquet"
"""Pattern of the parts of a table."""
UNFINISHED_PARTS = ".part-*.tmp"
"""Pattern of what a kill leaves of parts that were being written."""
_PART = re.compile(r"part-(\d+)(?:-(\d+))?\.parquet")


def part_name(first: int, last: int | None = None) -> str:
    """Name of a part; a merged one covers the numbers from `first` to `last`."""
    return f"part-{first:06d}.parquet" if last is None else f"part-{first:06d}-{last:06d}.parquet"


def part_numbers(part: Path) -> tuple[int, int]:
    """First and last number that a part covers, by its name; (0, 0) for what is no part."""
    match = _PART.fullmatch(part.name)
    return (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
