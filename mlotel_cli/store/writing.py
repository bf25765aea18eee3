"""Writes files so that readers see all of a file, or the file before it."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a path beside `path` to write to, and rename it to `path` at the end of the block.

    After an exception in the block, `path` is what it was before.

    Raises:
        OSError: when it cannot be renamed.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
