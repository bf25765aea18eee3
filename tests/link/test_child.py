"""The recorder as a child process: in words how it ended. That it starts is in test_handoff.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlotel_cli.errors import RecorderError
from mlotel_cli.link.child import RecorderProcess, how_it_ended


class Ended:
    """A process that ended with `code`; None is one that did not."""

    def __init__(self, code: int | None) -> None:
        self.code = code

    def wait(self, timeout: float | None = None) -> int | None:
        if self.code is None:
            raise subprocess.TimeoutExpired("recorder", timeout or 0)
        return self.code


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "exit code 1: two | three | MemoryError"),
        (0, "exit code 0: two | three | MemoryError"),
        (-signal.SIGKILL, "exit code -9: SIGKILL, as by a kernel that is short of memory"),
        (-signal.SIGSEGV, "exit code -11: SIGSEGV"),
        (-(signal.SIGRTMIN + 1), f"exit code -{signal.SIGRTMIN + 1}: signal {signal.SIGRTMIN + 1}"),
        (None, "it closed its pipe, and still runs"),
    ],
)
def test_only_an_end_of_its_own_is_explained_by_its_last_words(code: int | None, words: str, tmp_path: Path) -> None:
    log = tmp_path / "recorder.log"
    log.write_text("one\ntwo\nthree\nMemoryError\n")
    assert how_it_ended(Ended(code), log, after=0) == words


def test_words_of_an_earlier_recorder_explain_nothing(tmp_path: Path) -> None:
    log = tmp_path / "recorder.log"
    log.write_text("of the first\n")
    after = log.stat().st_size
    assert how_it_ended(Ended(1), log, after=after) == "exit code 1"
    with log.open("a") as file:
        file.write("of the second\n")
    assert how_it_ended(Ended(1), log, after=after) == "exit code 1: of the second"
    assert how_it_ended(Ended(1), tmp_path / "none", after=0) == "exit code 1"


def test_a_recorder_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(RecorderError, match=r"could not be started .*no-python"):
        RecorderProcess(tmp_path, imports=(), hear=print)
    assert len(os.listdir("/proc/self/fd")) == before
