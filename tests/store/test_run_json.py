"""run.json: what it begins with, what is added, and how a recorder goes on where another one died."""

import json
import os
import time
from dataclasses import replace

import pytest

from mlotel_cli.errors import RecorderError
from mlotel_cli.records import BatchRecord
from mlotel_cli.snapshot import SinkHealth
from mlotel_cli.store.run_json import Before, RunFile, Totals, mark_failed, read_info, rows_written, wandb_id
from mlotel_cli.wire import MonitorOptions
from tests.recorder.test_process import OPENING

RESTARTED = replace(OPENING, mode="monitor", monitor=MonitorOptions(restarts=2))


def read(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def row(status: str, size: int) -> BatchRecord:
    return BatchRecord(0, 0, 0, 0, size, status)


def test_a_new_run(tmp_path):
    file = RunFile(tmp_path, OPENING)
    assert list(tmp_path.iterdir()) == []
    file.write()
    info = read(tmp_path)
    assert (info["status"], info["recorder_pid"], info["notes"], info["started_ns"]) == ("running", os.getpid(), [], 1)
    assert (info["summary"], info["ended_ns"], info["schema_version"]) == (None, None, 1)
    assert file.before == Before()


def test_what_the_workload_tells_is_added_and_notes_are_kept(tmp_path):
    file = RunFile(tmp_path, OPENING)
    file.update({"environment": {"python": "3"}, "config": {"secret": 1}, "notes": ["one"]})
    file.update({"notes": ["two", "one"], "device": "cpu"})
    assert (file.info["notes"], file.info["environment"], file.info["device"]) == (
        ["one", "two"],
        {"python": "3"},
        "cpu",
    )
    assert "config" not in file.info


def test_a_recorder_that_takes_over_goes_on_where_the_last_one_died(tmp_path):
    first = RunFile(tmp_path, OPENING)
    first.update({"environment": {"python": "3"}, "notes": ["said"], "device": "cpu"})
    totals = Totals()
    for status, size in (("done", 4), ("done", 4), ("failed", 2)):
        totals.add(row(status, size))
    totals.spans = 30
    first.info |= {
        "totals": totals.to_json(),
        "recorder_pid": 1,
        "http": "http://127.0.0.1:41234",
        "wandb": {"id": "x"},
        "status": "interrupted",
        "sinks": {"otlp": {"sent": 5, "lost": 1, "queued": 2}, "parquet": {"sent": 4, "lost": 0}},
    }
    first.write()
    second = RunFile(tmp_path, RESTARTED)
    assert (second.info["environment"], second.info["device"]) == ({"python": "3"}, "cpu")
    assert (second.info["status"], second.info["recorder_pid"], second.info["wandb"]) == ("running", os.getpid(), None)
    said, note = second.info["notes"]
    assert said == "said"
    assert note.startswith("recorder 3 took over at 20")
    assert note.endswith("UTC; what the one before had not written is lost")
    assert second.before.totals == totals
    new = Totals()
    new.add(row("done", 1))
    assert second.before.port == 41234
    now = SinkHealth(sent=10, queued=7)
    assert second.before.with_sink("otlp", now) == SinkHealth(sent=15, lost=3, queued=7)
    assert second.before.with_sink("parquet", now).sent == 14
    assert second.before.with_sink("wandb", now) == now
    assert 1_000_000_000 < second.before.seconds < time.time()
    both = second.before.totals.plus(new)
    assert (both.rows, both.items, both.items_done, both.spans) == (4, 11, 9, 30)
    assert both.batches == {"done": 3, "failed": 1}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"totals": 3}', '{"totals": {"items": "x"}}', '{"started_ns": 1, "sinks": 3}']
)
def test_a_file_that_cannot_be_read_is_begun_anew_and_said(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    file = RunFile(tmp_path, RESTARTED)
    (note,) = file.info["notes"]
    assert "; its run.json could not be read: " in note
    assert (file.info["run_id"], file.before) == ("abc", Before())


def test_a_restart_without_any_file_is_one_too(tmp_path):
    assert "could not be read" in RunFile(tmp_path, RESTARTED).info["notes"][0]


def test_totals_survive_the_file():
    totals = Totals()
    totals.add(row("done", 4))
    assert Totals.from_json(json.loads(json.dumps(totals.to_json()))) == totals
    assert Totals.from_json({}) == Totals()


def test_a_folder_that_is_gone_is_said(tmp_path):
    file = RunFile(tmp_path / "gone", OPENING)
    with pytest.raises(RecorderError, match=r"run\.json cannot be written"):
        file.write()


@pytest.mark.parametrize(
    ("content", "run_id"), [('{"wandb": {"id": "abc"}}', "abc"), ('{"wandb": null}', None), ("{", None), ("[]", None)]
)
def test_the_wandb_run_of_a_recorder_before(tmp_path, content, run_id):
    assert wandb_id(tmp_path) is None
    (tmp_path / "run.json").write_text(content)
    assert wandb_id(tmp_path) == run_id


@pytest.mark.parametrize(
    ("content", "rows"),
    [('{"totals": {"batches": {"done": 5, "failed": 2}}}', 7), ('{"totals": null}', 0), ("{}", 0), ("[", 0)],
)
def test_rows_that_the_recorders_before_wrote(tmp_path, content, rows):
    assert rows_written(tmp_path) == 0
    (tmp_path / "run.json").write_text(content)
    assert rows_written(tmp_path) == rows


def test_a_run_whose_recorder_died_is_marked_as_failed(tmp_path):
    RunFile(tmp_path, OPENING).write()
    before = read_info(tmp_path)
    mark_failed(tmp_path, "the recorder process ended")
    after = read_info(tmp_path)
    assert (after["status"], after["error"]) == ("failed", "the recorder process ended")
    assert after["ended_ns"] > before["started_ns"]
    assert {key for key in before if before[key] != after[key]} == {"status", "ended_ns"}


def test_a_failure_that_cannot_be_noted_is_not_raised(tmp_path):
    mark_failed(tmp_path, "whatever")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.json").write_text("{")
    mark_failed(tmp_path, "whatever")
    assert (tmp_path / "run.json").read_text() == "{"
