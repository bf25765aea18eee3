"""Every kind of configuration mistake ends with exit code 2 and one short message, without a traceback."""

from pathlib import Path

import pytest

from mlotel_cli import launch
from mlotel_cli.config.config_errors import did_you_mean, exit_code, listed, message, readable
from mlotel_cli.errors import DataError, UsageError
from tests.support.cli import FakeMode, mlotel, write_conf


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMode:
    mode = FakeMode()
    monkeypatch.setitem(launch.MODES, "eval", mode.mode())
    monkeypatch.chdir(tmp_path)
    return mode


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "eval.repeat=1",
            "eval.repeat: unknown key; did you mean 'repeats'? "
            "(eval has warmup_batches, max_batches, repeats, on_error",
        ),
        ("sed=1", "sed: unknown key; did you mean 'seed'? (allowed at the top: "),
        (
            "pipeline.time_scal=1",
            "pipeline.time_scal: unknown key; did you mean 'time_scale'? (pipeline has _target_, ",
        ),
        ("eval.repeats=many", "eval.repeats=many: must be a whole number\n"),
        ("telemetry.part_s=soon", "telemetry.part_s=soon: must be a number\n"),
        ("telemetry.strict=perhaps", "telemetry.strict=perhaps: must be true or false\n"),
        ("eval.repeats=1.5", "eval.repeats=1.5: must be a whole number\n"),
        ("eval.on_error=Skip", "eval.on_error=Skip: allowed: fail, skip; did you mean 'skip'?\n"),
        ("tracker.mode=of", "tracker.mode=of: allowed: auto, online, offline, disabled\n"),
        ("eval=3", "eval=3: eval holds keys of its own; it cannot be one value\n"),
        ("tracker.tags=a", "tracker.tags=a: tracker.tags must be a list, such as [a, b]\n"),
        ("pipeline=dumy", "pipeline=dumy: there is no such option; allowed: dummy, module; did you mean 'dummy'?\n"),
        ("experiment=nope", "experiment=nope: there is no such option; allowed: quick\n"),
        ("seed=[1", "cannot read the override 'seed=[1': "),
        ("seed", "cannot read the override 'seed': "),
        ("run.name=${nowhere}", "run.name: the reference ${...} in its value cannot be resolved: "),
        ("run.name=${no_resolver:x}", "run.name: the reference ${...} in its value cannot be resolved: "),
        (
            "pipeline=module",
            "pipeline.module, pipeline.modules: a value must be given, for example pipeline.module=VALUE",
        ),
        ("+pipeline=dummy", "pipeline appears more than once"),
        ("~eval.repeat", "eval.repeat: unknown key, so it cannot be deleted\n"),
        ("+eval.repeat=2", "eval.repeat: unknown key; did you mean 'repeats'? (eval has warmup_batches, "),
        ("tracker=null", "Config group override must be a string or a list"),
        ("eval.repeats=1,2", "Ambiguous value for argument 'eval.repeats=1,2'"),
    ],
)
def test_override(fake: FakeMode, tmp_path: Path, override: str, expected: str) -> None:
    ended = mlotel("eval", override)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"mlotel: {expected}"), ended.err
    assert ended.err.count("\n") <= 4
    assert fake.jobs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"tracker/wandb.yaml": "projct: x"},
            ["tracker.projct: unknown key (in tracker/wandb.yaml); did you mean 'project'?"],
        ),
        ({"eval.yaml": "eval: {repeats: many}"}, ["eval.repeats=many: must be a whole number (in eval.yaml)"]),
        (
            {"telemetry/default.yaml": "backend: off"},
            ["telemetry.backend=False: allowed: otel, nvtx, off", "YAML reads a bare off as false: quote it"],
        ),
        (
            {"pipeline/dummy.yaml": "_target_: x\n  bad: [1"},
            ["conf/pipeline/dummy.yaml, line 2, column 6: not valid YAML"],
        ),
        ({"eval.yaml": "seed: 1\nseed: 2"}, ["conf/eval.yaml, line 2, column 1: not valid YAML", "duplicate key"]),
        ({"eval.yaml": "- a\n- list"}, ["a list where keys and values belong (in eval.yaml)"]),
        (
            {"eval.yaml": "defaults:\n  - eval_base\n  - override pipeline: nope\n  - _self_"},
            ["pipeline=nope: there is no such option; allowed: dummy, module"],
        ),
        (
            {"eval.yaml": "defaults:\n  - eval_base\n  - override pipelin: dummy\n  - _self_"},
            ["pipelin: unknown configuration group"],
        ),
        ({"eval.yaml": "defaults:\n  - eval_bas\n  - _self_"}, ["eval_bas"]),
        ({"experiment/e.yaml": "# @package _global_\nsed: 1"}, ["sed: unknown key (in experiment/e.yaml)"]),
    ],
)
def test_file(fake: FakeMode, tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    words = ["experiment=e"] if "experiment/e.yaml" in files else []
    ended = mlotel("eval", "-cd", str(write_conf(tmp_path, files)), *words)
    assert (ended.code, ended.out) == (2, "")
    for text in expected:
        assert text in ended.err
    assert ended.err.count("\n") <= 3
    assert fake.jobs == []


def test_debug_shows_the_traceback_too() -> None:
    ended = mlotel("eval", "eval.repeat=1", "--debug")
    assert ended.code == 2
    assert "Traceback (most recent call last)" in ended.err
    assert "mlotel: eval.repeat: unknown key" in ended.err


def test_did_you_mean() -> None:
    assert did_you_mean("repeat", ["repeats", "seed"]) == "; did you mean 'repeats'?"
    assert did_you_mean("xyz", ["repeats", "seed"]) == ""


def test_listed() -> None:
    assert (listed(["a", "b"]), listed([])) == ("a, b", "none")


def test_exit_code_and_message_of_other_errors() -> None:
    assert (exit_code(DataError("x")), message(DataError("x"))) == (1, "x")
    assert (exit_code(UsageError("x")), message(UsageError("x"))) == (2, "x")
    assert (exit_code(OSError("x")), message(OSError("x"))) == (1, "OSError: x")


@pytest.mark.timeout(5)  # before an endless chain has filled the memory
def test_readable_ends_on_a_circle_of_causes() -> None:
    from hydra.errors import HydraException

    first, second = HydraException("first"), HydraException("second")
    first.__cause__, second.__cause__ = second, first
    assert str(readable(first)) == "first"
