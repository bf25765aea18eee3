"""How a run begins: identity, directory, and what the recorder is told first."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mlotel_cli.config.policies import TrackerOptions
from mlotel_cli.config.schema import EvalConfig, Job
from mlotel_cli.errors import UsageError
from mlotel_cli.hardware import environment
from mlotel_cli.modes import opening
from mlotel_cli.modes.opening import (
    changed_environment,
    check_directory,
    create_opening,
    identify,
    make_directory,
    new_run_id,
    open_run,
    recorder_imports,
    tracker_options,
)


class FakeSession:
    """Notes how it is opened and what it is told."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def open(self, opening: Any, **options: Any) -> None:
        self.opening, self.options = opening, options

    def tell(self, info: Mapping[str, Any]) -> None:
        self.told.update(info)


def opened(*, mode: str = "eval", backend: str = "otel", sweep: str | None = None, **changed: Any) -> FakeSession:
    given = {"run": {"name": "lpr", "dir": "d"}, "device": "cpu"} | changed
    cfg: Any = OmegaConf.merge(OmegaConf.structured(EvalConfig), given)
    session, job = FakeSession(), Job(Path("d"), ["seed=1"], sweep, None, "eval")
    open_run(session, cfg, job, mode=mode, backend=backend)  # type: ignore[arg-type]
    return session


# -- a configured run -------------------------------------------------------------------------------------------------


def test_a_configured_run_tells_its_configuration_and_its_environment() -> None:
    before_ns = time.time_ns()
    session = opened(mode="profile", seed=5, telemetry={"settle_s": 7.0, "part_s": 0.5, "max_names": 9})
    told = session.opening
    assert (told.mode, told.name, told.overrides) == ("profile", "lpr", ["seed=1"])
    assert (told.settle_s, told.part_s, told.max_names) == (7.0, 0.5, 9)
    assert told.config["seed"] == 5
    assert told.identity["config.hash"] == identify(told.config, run_id="", name="", git=None)["config.hash"]
    assert before_ns <= told.started_ns <= time.time_ns()
    assert (told.settle_roots, told.monitor) == (False, None)
    assert session.options == {"backend": "otel", "strict": False, "flush_ms": 50, "device": None}
    assert session.told["environment"]["torch"] == str(torch.__version__)
    assert session.told["device"] == "cpu"


@pytest.mark.parametrize(("group", "expected"), [(None, "lr-sweep"), ("mine", "mine")])
def test_the_sweep_is_the_trackers_group_unless_one_is_given(group: str | None, expected: str) -> None:
    assert opened(sweep="lr-sweep", tracker={"group": group}).opening.tracker.group == expected


@pytest.mark.parametrize(("backend", "times"), [("otel", True), ("nvtx", False), ("off", False)])
def test_only_recorded_spans_take_times_of_the_device(
    backend: str, times: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "CudaEvents", lambda device: SimpleNamespace(device=device))
    monkeypatch.setattr(opening, "DeviceTimer", lambda events: ("timer", events.device))
    device = opened(device="cuda:0", backend=backend).options["device"]
    assert device == (("timer", "cuda:0") if times else None)


def test_wandb_is_imported_for_a_run_that_uses_it() -> None:
    assert recorder_imports("disabled") == ("polars",)
    assert recorder_imports("offline") == ("polars", "wandb")


# -- identity ---------------------------------------------------------------------------------------------------------


def test_an_opening_carries_one_run_id_and_the_commit() -> None:
    machine = {"git": {"commit": "abc", "dirty": False}}
    told = create_opening(mode="loop", name="n", config={"a": 1}, tracker=TrackerOptions(), machine=machine)
    assert (told.mode, told.name, told.config, told.tracker) == ("loop", "n", {"a": 1}, TrackerOptions())
    assert told.identity["mlotel.run.id"] == told.run_id
    assert told.identity["git.commit"] == "abc"


def test_a_configuration_has_one_hash_whatever_its_order() -> None:
    one, other, third = (
        identify(config, run_id="r", name="dummy", git=None)["config.hash"]
        for config in ({"a": 1, "b": {"c": 2}}, {"b": {"c": 2}, "a": 1}, {"a": 2})
    )
    assert one == other != third
    assert len(one) == 16


def test_the_service_is_named_by_the_environment_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    assert identify({}, run_id="r", name="dummy", git=None)["service.name"] == "dummy"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "a=1,service.name=gate")
    assert identify({}, run_id="r", name="dummy", git=None)["service.name"] == "gate"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "plates")
    identity = identify({}, run_id="r", name="dummy", git={"commit": "abc", "dirty": False})
    assert identity["service.name"] == "plates"
    assert (identity["git.commit"], identity["mlotel.run.id"]) == ("abc", "r")


def test_runs_and_instances_differ() -> None:
    first, second = (identify({}, run_id="r", name="n", git=None) for _ in range(2))
    assert first["service.instance.id"] != second["service.instance.id"]
    assert new_run_id() != new_run_id()


# -- runs of a program's own ------------------------------------------------------------------------------------------


def test_a_gpu_that_is_used_later_changes_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = environment()
    assert changed_environment(machine) is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    assert changed_environment(machine) == {"environment": {**machine, "gpu": ["GPU 0", "GPU 1"]}}


def test_a_gpu_that_failed_does_not_fail_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> bool:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", fails)
    assert changed_environment({"gpu": None}) is None


def test_two_runs_in_the_same_second_have_a_directory_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [make_directory(None) for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.is_dir() and folder.parent == Path("outputs", "loop") for folder in folders)


def test_a_given_directory_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert make_directory(str(folder)) == make_directory(folder) == folder
    assert folder.is_dir()


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for refuse in (check_directory, make_directory):
        with pytest.raises(UsageError, match=f"^directory={tmp_path}: it holds a run already; give another one$"):
            refuse(tmp_path)
    check_directory(tmp_path / "other")
    check_directory(None)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^directory=outputs/loop: cannot be written: "):
        make_directory(None)
    with pytest.raises(UsageError, match=r"^directory=outputs/x: cannot be written: "):
        make_directory(os.path.join("outputs", "x"))


def test_tracker_modes_are_those_of_wandb() -> None:
    given: dict[str, Any] = {"project": "p", "entity": None, "group": "g"}
    assert tracker_options(**given, mode="offline") == TrackerOptions(mode="offline", **given)
    with pytest.raises(UsageError, match=r"^mode='on': allowed are auto, online, offline, disabled$"):
        tracker_options(**given, mode="on")
