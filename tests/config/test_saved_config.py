"""The files that Hydra saves have no keys and passwords; the run itself gets both. The mode is a fake."""

import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mlotel_cli import launch
from mlotel_cli.config.saved_config import HideOverrides, secret_keys
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
    """Return the files below `folder` with a secret in their content or path."""
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


@pytest.mark.slow
def test_of_a_sweep_whose_folders_are_named_by_its_overrides(
    fake: FakeMode, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", "eval.repeats=1,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.override_dirname}"]
    ended = mlotel("eval", *words, *SECRET)
    assert ended.code == 0
    assert leaking(tmp_path / "sweep") == []
    printed = capfd.readouterr()
    assert "KEYKEY" not in (text := printed.out + printed.err + ended.out + ended.err)
    assert "PASSWORD" not in text
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


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\t#0 : seed=1 a.b=2", "\t#0 : seed=1 a.b=2"),
        ("\t#0 : telemetry.otlp.headers.a=Basic YWI= seed=1", "\t#0 : telemetry.otlp.headers.a=*** seed=1"),
        ("#0 : seed=1 +telemetry.otlp.headers={a:Basic YWI=} b=c", "#0 : seed=1 +telemetry.otlp.headers={a:***} b=c"),
        ("#0 : x=y telemetry={otlp:{headers:{a:b c}}}", "#0 : x=y telemetry=***"),
        ("Launching 2 jobs locally", "Launching 2 jobs locally"),
    ],
)
def test_lines_of_overrides(line: str, shown: str) -> None:
    record = logging.LogRecord("hydra", logging.INFO, "", 0, line, (), None)
    assert HideOverrides().filter(record)
    assert record.getMessage() == shown
