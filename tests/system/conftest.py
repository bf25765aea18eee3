"""Real programs beside mlotel: skipped by name where they are missing, except in CI, where that is a failure."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.system)
            if "nsys" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.nsys)


@pytest.fixture(scope="session")
def nsys() -> Path:
    """Nsight Systems, from PATH or from where tests/system/install_nsys.sh puts it."""
    return find("nsys", ROOT / ".nsys" / "bin")


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """Prometheus, with promtool beside it, from PATH or from where tests/system/install_prometheus.sh puts it."""
    return find("prometheus", ROOT / ".prometheus" / "usr" / "bin")


def find(program: str, unpacked: Path) -> Path:
    found = shutil.which(program) or shutil.which(program, path=str(unpacked))
    if found is None:
        reason = f"{program} is not installed: tests/system/install_{program}.sh unpacks it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(found)
