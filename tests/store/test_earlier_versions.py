"""Run directories that earlier versions wrote stay readable; what a newer one wrote is refused with one message."""

import json
import shutil
from pathlib import Path

import pytest

from mlotel_cli.errors import UsageError
from mlotel_cli.records import SpanRecord
from mlotel_cli.store.layout import BATCHES, SPANS
from mlotel_cli.store.reading import count_rows, newest_rows, read_run
from mlotel_cli.store.run_json import SCHEMA_VERSION
from mlotel_cli.store.traces import load_spans, traced_range
from tests.support.cli import mlotel

RUNS = Path(__file__).parent / "runs" / "0.1.0"
NAMES = ("eval", "monitor", "profile", "killed")
STAGES = ("model_1", "model_2", "model_3")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy: reading changes nothing, and what would change something is seen."""
    shutil.copytree(RUNS, tmp_path / "runs")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("name", "status", "num_batches", "num_spans", "num_samples"),
    [
        ("eval", "complete", 40, 280, 40),
        ("monitor", "complete", 40, 280, 0),
        ("profile", "complete", 10, 70, 10),
        ("killed", "interrupted", 26, 106, 26),
    ],
)
def test_tables(name: str, status: str, num_batches: int, num_spans: int, num_samples: int) -> None:
    run = read_run(RUNS / name)
    assert (run.status, run.died) == (status, status == "interrupted")
    assert run.batches["batch"].to_list() == list(range(num_batches))
    assert (run.spans.height, run.samples.height) == (num_spans, num_samples)
    assert count_rows(run.path / BATCHES) == num_batches
    assert newest_rows(run.path / BATCHES, 3)["batch"].to_list() == [num_batches - n for n in (3, 2, 1)]
    assert traced_range(run.path / SPANS) == (0, num_batches - 1 if name != "killed" else 26)


@pytest.mark.parametrize("name", ["eval", "monitor", "profile"])
def test_rows_say_what_the_run_said_of_itself(name: str) -> None:
    run = read_run(RUNS / name)
    said = run.info["summary"]
    assert run.batches["latency_ms"].median() == pytest.approx(said["latency_ms"]["batch"]["p50"])
    for stage in STAGES:
        for measure in ("host", "queue"):
            figures = said["latency_ms"]["stages"][stage][measure]
            assert run.batches[f"{stage}.{measure}_ms"].mean() == pytest.approx(figures["mean"])
    assert run.batches["data.num_detections"].mean() == pytest.approx(said["data"]["num_detections"]["mean"])
    if name != "monitor":
        assert run.batches["accuracy.score"].mean() == pytest.approx(said["accuracy"]["score"]["value"])
        assert run.samples["score.score"].mean() == pytest.approx(said["accuracy"]["score"]["value"])


def test_spans_come_back() -> None:
    spans = load_spans(RUNS / "eval" / SPANS, 23, 23)
    assert [span.name for span in spans] == ["batch", *(name for stage in STAGES for name in (f"queue {stage}", stage))]
    root, *below = spans
    assert {span.parent_id for span in below} == {root.span_id}
    assert root.attributes == {"batch.index": 23, "batch.size": 1}

    def took_ms(span: SpanRecord) -> float:
        return (span.end_ns - span.start_ns) / 1e6

    row = read_run(RUNS / "eval").batches.row(23, named=True)
    assert took_ms(root) == row["latency_ms"] == pytest.approx(22.1, abs=0.05)
    assert [took_ms(span) for span in below[1::2]] == [row[f"{stage}.host_ms"] for stage in STAGES]


def test_the_list_of_runs(runs: Path) -> None:
    ended = mlotel("runs", str(runs), "--json")
    assert (ended.code, ended.err) == (0, "")
    listed = {Path(run.pop("path")).name: run for run in json.loads(ended.out)}
    assert list(listed) == ["killed", "profile", "monitor", "eval"]
    assert [listed[name]["status"] for name in NAMES] == ["complete", "complete", "complete", "interrupted?"]
    assert [listed[name]["batches"] for name in NAMES] == [40, 40, 10, 26]
    assert [listed[name]["p50_ms"] for name in NAMES] == [12.7680895, 8.797963500000002, 22.682175, None]
    assert [listed[name]["accuracy"] for name in NAMES] == [{"score": 0.7}, {}, {"score": 0.8}, {}]
    assert listed["monitor"]["items_per_s"] == 673.3037697997097


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("eval", ["eval dummy: complete, 40 batches", "batch 28 (median): 12.9 ms", "scored  score 1  num_detections"]),
        ("monitor", ["monitor dummy: complete, 40 batches", "batch 36 (median): 8.80 ms", "done  num_detections"]),
        ("killed", ["eval dummy: interrupted, 26 batches", "batch 6 (median): 55.1 ms", "model_1 +17.3 ms (1.9 x)"]),
    ],
)
def test_traces(runs: Path, name: str, lines: list[str]) -> None:
    ended = mlotel("trace", str(runs / name))
    assert (ended.code, ended.err) == (0, "")
    assert [line for line in lines if line not in ended.out] == []


def test_comparing_an_evaluation_and_a_profile(runs: Path) -> None:
    ended = mlotel("compare", str(runs / "eval"), str(runs / "profile"))
    assert ended.code == 0
    assert "p50 over 10 common batches" in ended.out
    figures = [row for row in map(str.split, ended.out.replace("│", " ").splitlines()) if row[:1] == ["batch"]]
    assert figures == [["batch", "5.386", "22.682", "4.211"]]
    assert "eval: 30 of its 40 batches are not in the other run" in ended.out
    assert "the same work" not in ended.out


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, "2.0", None])
def test_what_a_newer_version_wrote_is_refused_with_one_message(runs: Path, version: object) -> None:
    path = runs / "eval" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    message = (
        f"{path}: schema_version={version!r}: a newer mlotel wrote it; this one reads up to {SCHEMA_VERSION}. "
        "Upgrade it: pip install --upgrade mlotel"
    )
    with pytest.raises(UsageError) as raised:
        read_run(runs / "eval")
    assert str(raised.value) == message
    for words in (["trace", str(runs / "eval")], ["compare", str(runs / "eval"), str(runs / "profile")]):
        ended = mlotel(*words)
        assert (ended.code, ended.out, ended.err) == (2, "", f"mlotel: {message}\n")
    ended = mlotel("runs", str(runs), "--json")
    assert (ended.code, ended.err) == (0, f"skipped: {message}\n")
    assert [Path(run["path"]).name for run in json.loads(ended.out)] == ["killed", "profile", "monitor"]
