"""What Hydra saves has neither keys nor passwords in it; the run itself gets both. The mode is a fake."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mlotel_cli import launch
from mlotel_cli.saved_config import secret_keys
from tests.support.cli import FakeMode, mlotel

SECRET = [
    "telemetry.otlp.headers={authorization: Bearer KEYKEY}",
    "telemetry.otlp.endpoint=http://me:PASSWORD@127.0.0.1:9",
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMode:
    mode = FakeMode()
    monkeypatch.setitem(launch.MODES, "eval", mode.mode())
    monkeypatch.chdir(tmp_path)
    return mode


def leaking(folder: Path) -> list[Path]:
    """Files below `folder`, by content or name."""
    paths = list(folder.rglob("*"))
    assert paths
    words = ("KEYKEY", "PASSWORD")
    named = [path for path in paths if any(word in str(path.relative_to(folder)) for word in words)]
    return named + [path for path in paths if path.is_file() and any(word in path.read_text() for word in words)]


def test_of_a_single_run(fake: FakeMode, tmp_path: Path) -> None:
    assert mlotel("eval", *SECRET, "run.dir=here").code == 0
    assert leaking(tmp_path / "here") == []
    otlp = fake.cfg.telemetry.otlp
    assert (otlp.headers.authorization, otlp.endpoint) == ("Bearer KEYKEY", "http://me:PASSWORD@127.0.0.1:9")
    assert "KEYKEY" not in fake.job.overrides[0]
    saved = OmegaConf.load(tmp_path / "here/.hydra/config.yaml")
    assert saved.telemetry.otlp.headers == {"authorization": "***"}
    assert saved.telemetry.otlp.endpoint == "http://***@127.0.0.1:9"
    assert fake.job.overrides == list(OmegaConf.load(tmp_path / "here/.hydra/overrides.yaml"))


def test_of_a_sweep_whose_folders_are_named_by_its_overrides(fake: FakeMode, tmp_path: Path) -> None:
    words = ["-m", "eval.repeats=1,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.override_dirname}"]
    assert mlotel("eval", *words, *SECRET).code == 0
    assert leaking(tmp_path / "sweep") == []
    assert sorted(folder.name for folder in (tmp_path / "sweep").iterdir() if folder.is_dir()) == [
        "eval.repeats=1",
        "eval.repeats=2",
    ]


def test_what_holds_no_secret_is_left_as_hydra_wrote_it(fake: FakeMode, tmp_path: Path) -> None:
    assert mlotel("eval", "eval.repeats=3", "run.name=${oc.env:HOME}", "run.dir=here").code == 0
    saved = (tmp_path / "here/.hydra/config.yaml").read_text()
    assert "name: ${oc.env:HOME}" in saved
    assert "here" in saved
    assert not list((tmp_path / "here/.hydra").glob("*.tmp"))


def test_keys_of_secrets() -> None:
    overrides = ["seed=1", "+telemetry.otlp.headers.a=b", "source.uri='rtsp://a:b@c'", "telemetry.otlp.headers={a"]
    assert secret_keys(overrides) == ["telemetry.otlp.headers.a", "source.uri"]
