"""What commands print on terminals of several widths and into a pipe, with names that are hard to fit."""

import re
from collections.abc import Iterable

import pytest
from rich.cells import cell_len

PIPE = None
WIDTHS = (40, 60, 80, 120, PIPE)
"""Columns of a terminal; None is a pipe."""
LONG_NAME = "plate_reader_whose_name_has_40_letters_x"
WIDE_NAME = "\u8eca\u4e21\u691c\u51fa\u5668"
LONG_PATH = "/data/" + "a_folder-of/" * 9 + "file_7"


def set_width(monkeypatch: pytest.MonkeyPatch, width: int | None) -> None:
    """What is captured is no terminal: its width is what COLUMNS says, and without it a pipe's."""
    if width is PIPE:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))


def check_whole(table: str, *, width: int | None, figures: Iterable[str], texts: Iterable[str]) -> None:
    """Each figure stands there in one piece; each text at least folded, and in one piece in a pipe."""
    rows = table.splitlines()
    assert "\u2026" not in table, f"cut: {table}"
    for figure in figures:
        assert re.search(rf"(?<![\w.,<]){re.escape(figure)}(?![\w,<]|\.\d)", table), f"{figure} is cut"
    for text in texts:
        assert width is not PIPE or text in table, f"{text} is folded in a pipe"
        assert is_folded_in(text, rows), f"{text} is cut"
    if width is not PIPE:
        assert max(map(cell_len, rows)) <= width


def is_folded_in(text: str, rows: list[str]) -> bool:
    """True where consecutive rows hold the text, part by part."""
    for start in range(len(rows)):
        left = text
        for row in rows[start:]:
            size = max(end for end in range(len(left) + 1) if left[:end] in row)
            left = left[size:].lstrip()
            if not left:
                return True
            if not size:
                break
    return False
