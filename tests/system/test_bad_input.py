"""Bad input to whole runs: one clear message that names batch, stage and cause, and all that was measured is kept."""

from pathlib import Path
from typing import Any

import pytest

from mlotel_cli import read_run
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from tests.support.evaluation import command, conf, evaluate, target


@pytest.fixture(autouse=True)
def _spans_off_afterwards():
    yield
    assert api.PROVIDER.backend is OFF


def metric(name: str = "right", **arguments: Any) -> str:
    return f"{name}: {{{target('Right', **arguments)}}}"


KEPT: dict[str, tuple[dict[str, str], str, list[str]]] = {
    "a stage raises": (
        {"pipeline": target("Raises", at=2)},
        "batch 2: stage double raised RuntimeError: no double of 3 [see manual]",
        ["scored", "scored", "failed"],
    ),
    "a NaN output": (
        {"pipeline": target("GivesNaN", at=2), "metrics": ""},
        "batch 2: stage divide returned 2 NaN values; it cannot be scored",
        ["scored", "scored", "failed"],
    ),
    "a batch of size 0": (
        {"data": target("Sizes", sizes="[2, 3, 0, 1]")},
        "batch 2: its size is 0; a batch has at least one item",
        ["scored", "scored", "failed"],
    ),
    "a metric raises": (
        {"metrics": metric(fails_on=1)},
        "batch 1: metric right failed: KeyError: 'no such label'",
        ["scored", "failed"],
    ),
    "a metric cannot compute": (
        {"metrics": metric(computes="error")},
        "5 batches ran, but metric right could not be computed: ValueError: no item was scored",
        ["scored"] * 5,
    ),
    "a metric computes NaN": (
        {"metrics": metric(computes="nan")},
        "5 batches ran, but metric right could not be computed: it computed nan",
        ["scored"] * 5,
    ),
    "the source raises": (
        {"data": target("Numbers", fails_at=3)},
        "data: batch 3 cannot be read: OSError: disk gone [sda]",
        ["scored"] * 3,
    ),
    "a generator raises": (
        {"data": target("once", fails_at=1)},
        "data: batch 1 cannot be read: OSError: disk gone [sda]",
        ["scored"],
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_the_run_fails_with_one_message_and_keeps_its_rows(tmp_path: Path, case: str) -> None:
    parts, message, statuses = KEPT[case]
    ended = evaluate(tmp_path, **parts)
    assert ended.code == 1
    assert [line for line in ended.err.splitlines() if line.startswith("mlotel: ")] == [f"mlotel: {message}"]
    assert "Traceback" not in ended.err + ended.out
    run = read_run(tmp_path / "run")
    assert (run.status, run.info["error"]) == ("failed", message)
    rows = run.batches
    assert rows["status"].to_list() == statuses
    if statuses[-1] == "failed":
        assert rows["error"].to_list() == ["" if status == "scored" else message for status in statuses]
    assert rows.filter(rows["status"] == "scored")["latency_ms"].null_count() == 0
    assert "failed: " in ended.out  # the table of what there is
    assert run.summary.batches == {status: statuses.count(status) for status in sorted(set(statuses))}
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("parts", "code", "message"),
    [
        (
            {"data": target("OpensFile", path="/nowhere/val.json")},
            1,
            "data: tests.support.parts.OpensFile raised FileNotFoundError: [Errno 2] No such file or directory: "
            "'/nowhere/val.json'",
        ),
        ({"pipeline": "_target_: builtins.object"}, 2, "pipeline: object has no `stages` and cannot be called"),
        ({"data": "_target_: builtins.object"}, 2, "data: object cannot be iterated"),
        (
            {"metrics": "m: {_target_: builtins.object}"},
            2,
            "metrics.m: object needs update(output, targets) and compute()",
        ),
        (
            {
                "pipeline": target(
                    "mlotel_cli.pipeline.ModulePipeline", module="{_target_: torch.nn.ReLU}", modules="[x]"
                )
            },
            2,
            "pipeline.modules: ReLU has no submodule 'x'; it has: none",
        ),
    ],
)
def test_what_cannot_be_built_starts_no_run(tmp_path: Path, parts: dict[str, str], code: int, message: str) -> None:
    ended = evaluate(tmp_path, **parts)
    assert (ended.code, ended.err.startswith(f"mlotel: {message}")) == (code, True), ended.err
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_file_that_is_missing_when_it_is_read(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "eval.warmup_batches=2", data=target("missing_file", path="/nowhere/val.json"))
    assert ended.code == 1
    assert "mlotel: data: batch 0 cannot be read: FileNotFoundError: [Errno 2] No such file or" in ended.err
    assert read_run(tmp_path / "run").status == "failed"


@pytest.mark.parametrize("data", [target("Numbers", num_batches=0), target("once", num_batches=0)])
def test_an_empty_data_set(tmp_path: Path, data: str) -> None:
    ended = evaluate(tmp_path, data=data)
    assert (ended.code, ended.err) == (1, "mlotel: data: the data set is empty: it yielded no batch\n")
    run = read_run(tmp_path / "run")
    assert (run.status, run.batches.height) == ("failed", 0)


def test_one_pass_data_cannot_be_repeated(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "eval.repeats=2", data=target("once"))
    assert ended.code == 2
    assert ended.err.startswith("mlotel: eval.repeats=2: the data, a generator, can be iterated once only")
    assert not (tmp_path / "run" / "run.json").exists()


def test_skip_counts_and_goes_on(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "eval.on_error=skip", pipeline=target("Raises", at=2))
    assert ended.code == 0, ended.err
    assert "complete: 4 scored, 1 skipped" in ended.out
    run = read_run(tmp_path / "run")
    assert run.status == "complete"
    assert run.batches["status"].to_list() == ["scored", "scored", "skipped", "scored", "scored"]
    assert run.summary.accuracy["right"].value == 1.0
    assert run.summary.latency_ms.batch.count == 4
    spans = run.spans
    failed = spans.filter((spans["name"] == "double") & (spans["status"] == "ERROR"))
    assert failed["batch"].to_list() == [2]


def test_debug_shows_where(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "--debug", pipeline=target("Raises", at=0))
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert "in _double" in ended.err


@pytest.mark.parametrize("where", ["file/run", "/proc/mlotel/run"])
def test_a_run_directory_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    ended = command("eval", "-cd", str(conf(tmp_path)), f"run.dir={where}", cwd=tmp_path)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("mlotel: run.dir")
    assert "cannot be written" in line
    assert where.split("/")[-2] in line


def test_a_real_process_says_one_line_and_exits_1(tmp_path: Path) -> None:
    folder = conf(tmp_path, pipeline=target("Raises", at=1))
    ended = command("eval", "-cd", str(folder), f"run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == "mlotel: batch 1: stage double raised RuntimeError: no double of 2 [see manual]\n"
    assert read_run(tmp_path / "run").batches["status"].to_list() == ["scored", "failed"]
