"""Everything here needs a CUDA device, and is skipped by name without one."""

import shutil
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nsys() -> Path:
    """Nsight Systems, from PATH or from where tests/system/install_nsys.sh puts it."""
    found = shutil.which("nsys") or shutil.which("nsys", path=str(ROOT / ".nsys" / "bin"))
    if found is None:
        pytest.skip("nsys is not installed: tests/system/install_nsys.sh unpacks it")
    return Path(found)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if "nsys" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.nsys)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
