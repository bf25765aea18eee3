"""`mlotel_cli.start_run`: a program's own loop becomes rows, and its run ends in order, however the loop ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

import mlotel_cli
from mlotel_cli import read_run
from mlotel_cli.errors import UsageError
from mlotel_cli.hardware import git_state
from mlotel_cli.modes.opening import identify
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF


@pytest.fixture(autouse=True)
def _backend() -> Generator[None]:
    before = api.PROVIDER.backend
    yield
    assert api.PROVIDER.backend is OFF
    api.use(before)


def loop(batches: int) -> None:
    for index in range(batches):
        with mlotel_cli.batch(index, size=4):
            with mlotel_cli.span("detector"):
                mlotel_cli.record("num_boxes", 3 + index, unit="{box}")
            mlotel_cli.score("recall", index / 2)


def test_every_batch_becomes_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with mlotel_cli.start_run("mine", directory=tmp_path / "run", config={"lr": 0.1}, mode="disabled") as folder:
        loop(3)
    assert folder == tmp_path / "run"
    run = read_run(folder)
    assert (run.status, run.info["mode"], run.info["name"]) == ("complete", "loop", "mine")
    rows = run.batches
    assert rows["batch"].to_list() == [0, 1, 2]
    assert rows["status"].to_list() == ["scored"] * 3
    assert rows["size"].to_list() == [4, 4, 4]
    assert rows["accuracy.recall"].to_list() == [0.0, 0.5, 1.0]
    assert rows["data.num_boxes"].to_list() == [3.0, 4.0, 5.0]
    assert rows["detector.calls"].to_list() == [1, 1, 1]
    assert (rows["detector.host_ms"] <= rows["latency_ms"]).all()
    printed = capsys.readouterr().out
    assert "complete: 3 scored" in printed
    assert "detector" in printed
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_run_records_what_every_run_records(tmp_path: Path) -> None:
    with mlotel_cli.start_run(directory=tmp_path / "run", config={"lr": 0.1}, mode="disabled") as folder:
        pass
    info = read_run(folder).info
    assert info["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert info["environment"]["git"] == git_state(Path.cwd())
    assert info["identity"]["git.commit"] == (git_state(Path.cwd()) or {}).get("commit")
    assert info["identity"]["config.hash"] == identify({"lr": 0.1}, run_id="", name="", git=None)["config.hash"]


def test_a_gpu_that_the_program_took_later_is_told_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def asked_too_early() -> bool:
        pytest.fail("it would begin to use CUDA, and a forked child could not any more")

    monkeypatch.setattr(torch.cuda, "is_available", asked_too_early)
    with mlotel_cli.start_run(directory=tmp_path / "run", mode="disabled") as folder:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    environment = read_run(folder).info["environment"]
    assert (environment["gpu"], environment["git"]) == (["H100"], git_state(Path.cwd()))


def test_an_error_in_the_loop_is_raised_and_kept_with_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        mlotel_cli.start_run(directory=tmp_path / "run", mode="disabled"),
        mlotel_cli.batch(7),
    ):
        raise ZeroDivisionError("told to")
    run = read_run(tmp_path / "run")
    assert (run.status, run.info["error"]) == ("failed", "told to")
    assert run.batches.select("batch", "status", "error").rows() == [(7, "failed", "ZeroDivisionError: told to")]
    assert "failed: 1 failed" in capsys.readouterr().out


def test_ctrl_c_ends_it_as_interrupted(tmp_path: Path) -> None:
    def program() -> None:
        with mlotel_cli.start_run(directory=tmp_path / "run", mode="disabled"):
            loop(2)
            os.kill(os.getpid(), signal.SIGINT)
            loop(1)  # never

    with pytest.raises(KeyboardInterrupt):
        program()
    run = read_run(tmp_path / "run")
    assert (run.status, run.batches.height) == ("interrupted", 2)


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a run already"), mlotel_cli.start_run(directory=tmp_path):
        pytest.fail("it must not start")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    with pytest.raises(UsageError, match="cannot be written"), mlotel_cli.start_run(directory=folder):
        pytest.fail("it must not start")


def test_a_mode_that_is_none_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"^mode='on': allowed are auto, online, offline, disabled$"),
        mlotel_cli.start_run(directory=tmp_path / "run", mode="on"),
    ):
        pytest.fail("it must not start")
    assert not (tmp_path / "run").exists()


def test_a_program_with_a_provider_of_its_own_is_told_the_one_line(tmp_path: Path) -> None:
    program = """
import opentelemetry.trace, opentelemetry.sdk.trace, mlotel_cli
from mlotel_cli.errors import UsageError
opentelemetry.trace.set_tracer_provider(opentelemetry.sdk.trace.TracerProvider())
try:
    mlotel_cli.start_run(directory="run").__enter__()
except UsageError as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "provider.add_span_processor(mlotel_cli.MlotelSpanProcessor())" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_default_directory_is_dated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with mlotel_cli.start_run(mode="disabled") as folder:
        pass
    assert folder.parent == Path("outputs/loop")
    assert read_run(folder).status == "complete"


def test_a_loop_is_held_back_while_the_recorder_is_behind(tmp_path, monkeypatch) -> None:
    from mlotel_cli.link.handoff import RecorderLink

    calls = []
    monkeypatch.setattr(RecorderLink, "wait_for_room", lambda _link: calls.append(1))

    with mlotel_cli.start_run(directory=tmp_path / "run", mode="disabled"):
        for index in range(3):
            with mlotel_cli.batch(index):
                pass

    assert len(calls) == 3
    with mlotel_cli.batch(3):
        pass
    assert len(calls) == 3


def test_two_runs_of_the_same_second_have_a_directory_each(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    folders = []
    for _ in range(2):
        with mlotel_cli.start_run(mode="disabled") as folder:
            folders.append(folder)

    assert folders[0] != folders[1]
    assert all((folder / "run.json").exists() for folder in folders)
