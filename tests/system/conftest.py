"""Real programs beside mlotel: skipped by name where they are missing, except in CI, where that is a failure."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def nsys() -> Path:
    """Nsight Systems, from PATH or from where tests/system/install_nsys.sh puts it."""
    unpacked = Path(__file__).parents[2] / ".nsys" / "bin"
    found = shutil.which("nsys") or shutil.which("nsys", path=str(unpacked))
    if found is None:
        reason = "nsys is not installed: tests/system/install_nsys.sh unpacks it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(found)
