"""The machine is described and its devices are checked."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlotel_cli import hardware
from mlotel_cli.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make torch believe in two GPUs."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda n: f"GPU {n}")
    monkeypatch.setattr(torch, "version", SimpleNamespace(cuda="12.8"))
    return torch


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "version", SimpleNamespace(cuda=None))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:1"])
def test_device_that_is_there(cuda: Any, device: str) -> None:
    hardware.check_device(device)


def test_device_beyond_the_last(cuda: Any) -> None:
    with pytest.raises(UsageError, match=r"^device=cuda:2: not on this machine: torch sees 2 CUDA devices"):
        hardware.check_device("cuda:2")


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_without_cuda(no_cuda: None, device: str) -> None:
    with pytest.raises(UsageError, match=rf"^device={device}: .*this torch has no CUDA; allowed here: auto, cpu$"):
        hardware.check_device(device)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", "cpu:0", ""])
def test_device_that_is_misspelt(device: str) -> None:
    with pytest.raises(UsageError, match=f"^device={device}: allowed: auto, cpu, cuda, cuda:N$"):
        hardware.check_device(device)


def test_auto_takes_the_gpu(cuda: Any) -> None:
    assert hardware.find_device() == "cuda:0"


def test_auto_without_gpu(no_cuda: None) -> None:
    assert hardware.find_device() == "cpu"


def test_environment_is_json_and_complete() -> None:
    found = json.loads(json.dumps(hardware.environment(with_torch=True)))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpu"]["usable_cores"] == len(os.sched_getaffinity(0))
    assert found["cpu"]["model"]
    assert found["memory_bytes"] > 2**28
    assert {"torch", "cuda", "gpu", "git", "platform"} <= set(found)
    assert found["packages"]["hydra-core"].startswith("1.3")


def test_environment_with_gpus(cuda: Any) -> None:
    found = hardware.environment(with_torch=True)
    assert (found["cuda"], found["gpu"]) == ("12.8", ["GPU 0", "GPU 1"])


def test_environment_leaves_cuda_alone_until_the_program_uses_it(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(cuda.cuda, "is_available", lambda: pytest.fail("it would begin to use CUDA"))
        assert hardware.environment()["gpu"] is None
    monkeypatch.setattr(cuda.cuda, "is_initialized", lambda: True)
    assert hardware.environment()["gpu"] == ["GPU 0", "GPU 1"]


def test_environment_leaves_torch_alone() -> None:
    script = (
        "import sys; from mlotel_cli.hardware import environment; e = environment(); "
        "print('torch' in sys.modules, e['torch'], e['gpu'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == f"False {hardware.version_of('torch')} None\n"


def test_version_of_what_is_not_installed() -> None:
    assert hardware.version_of("no-such-distribution-anywhere") is None


def test_cpu_model(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nprocessor\t: 1\nmodel name\t: Some CPU @ 3 GHz\n"
    )
    assert hardware.cpu_model(cpuinfo) == "Some CPU @ 3 GHz"
    assert hardware.cpu_model(tmp_path / "absent") != ""


@pytest.mark.parametrize(("text", "pages"), [("100 7 3", 7), ("", None), ("a b", None)])
def test_resident_memory(tmp_path: Path, text: str, pages: int | None) -> None:
    (tmp_path / "statm").write_text(text)
    assert hardware.rss_bytes(tmp_path / "statm") == (pages and pages * os.sysconf("SC_PAGE_SIZE"))
    assert hardware.rss_bytes(Path("/nonexistent")) is None


def test_git_state(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@e")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    assert hardware.git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert hardware.git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "untracked").write_text("")
    assert hardware.git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert hardware.git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_git_state_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.git_state(ROOT) is None


def test_environment_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOTEL_TEST_A", "old")
    monkeypatch.delenv("MLOTEL_TEST_B", raising=False)
    with hardware.environment_variables(MLOTEL_TEST_A="new", MLOTEL_TEST_B="new"):
        assert (os.environ["MLOTEL_TEST_A"], os.environ["MLOTEL_TEST_B"]) == ("new", "new")
    assert os.environ["MLOTEL_TEST_A"] == "old"
    assert "MLOTEL_TEST_B" not in os.environ
