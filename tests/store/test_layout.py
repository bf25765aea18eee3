"""Names of parts are built and understood alike, and sort by their numbers."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from mlotel_cli.store.layout import PARTS, part_name, part_numbers


@pytest.mark.parametrize(("first", "last"), [(1, None), (1, 3), (999_999, 1_000_000), (12_345_678, None)])
def test_a_name_gives_its_numbers_back(first: int, last: int | None) -> None:
    name = part_name(first, last)
    assert part_numbers(Path("t", name)) == (first, last or first)
    assert fnmatch(name, PARTS)


def test_names_of_run_directories() -> None:
    assert [part_name(1), part_name(1, 3)] == ["part-000001.parquet", "part-000001-000003.parquet"]


@pytest.mark.parametrize("name", ["part-copy.parquet", ".part-000001.parquet.tmp", "part-000001.parquet.tmp", "x"])
def test_what_is_no_part_has_no_numbers(name: str) -> None:
    assert part_numbers(Path(name)) == (0, 0)
