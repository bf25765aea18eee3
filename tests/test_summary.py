"""What run.json holds under `summary` is what version 0.1.0 wrote, byte for byte, and is read back whole."""

import json
from pathlib import Path

import pytest

from mlotel_cli.recorder.ending import summarise_run
from mlotel_cli.stats.description import Description
from mlotel_cli.summary import Control, OtlpCounts, Score, Summary
from mlotel_cli.typed_json import from_json
from mlotel_cli.wire import Closing, from_plain
from tests.support.summarised import FOLDER, MADE, RECORDED, text

FILES = sorted(FOLDER.glob("*.json"))


def shape(value: object) -> object:
    """Keys in their order; figures without their last digits, in which processors differ."""
    if isinstance(value, dict):
        return [(key, shape(part)) for key, part in value.items()]
    if isinstance(value, list):
        return [shape(part) for part in value]
    return round(value, 9) if isinstance(value, float) else value


def test_the_files_are_there() -> None:
    assert {path.stem for path in FILES} == {*MADE, "run_eval", "run_monitor", "run_pipelined_eval", "run_control"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_summary_that_is_read_is_written_as_it_was(path: Path) -> None:
    old = path.read_text()
    assert text(Summary.from_json(json.loads(old)).to_json()) + "\n" == old


@pytest.mark.parametrize("name", MADE)
def test_a_run_is_summed_up_as_it_was(name: str, tmp_path: Path) -> None:
    made = MADE[name]()
    closing = from_plain(made.closing, Closing)
    summary = summarise_run(made.write(tmp_path), closing, executor=made.executor, mean_scores=made.mean_scores)
    for counter in set(RECORDED) - {"otlp"}:
        setattr(summary.telemetry, counter, RECORDED[counter])
    summary.telemetry.otlp = from_json(OtlpCounts, RECORDED["otlp"])

    old, new = json.loads((FOLDER / f"{name}.json").read_text()), json.loads(text(summary.to_json()))

    assert shape(new) == shape(old)


def test_figures_have_names() -> None:
    summary = Summary.from_json(json.loads((FOLDER / "with_devices.json").read_text()))
    detector = summary.latency_ms.stages["detector"]
    assert (summary.accuracy["map"], summary.accuracy["broken"]) == (Score(0.25, (0.2, 0.3)), Score(None, None))
    assert detector.verdict == "device-bound"
    assert detector.lag is not None
    assert detector.lag.count == 119
    assert detector.lag.figure("p50") == detector.lag.p50
    assert summary.telemetry.otlp is not None
    assert (summary.telemetry.otlp.lost, summary.telemetry.otlp.metrics.endpoint) == (10, None)  # type: ignore[union-attr]
    assert summary.bottleneck is not None
    assert summary.bottleneck.limited_by_cores == []


def test_a_control_is_there_null_or_absent() -> None:
    read = {
        name: Summary.from_json(json.loads((FOLDER / f"{name}.json").read_text())) for name in ("sequential", "nothing")
    }
    assert read["sequential"].telemetry.control is None
    assert not read["nothing"].telemetry.control
    found = Summary.from_json(json.loads((FOLDER / "run_control.json").read_text())).telemetry.control
    assert isinstance(found, Control)
    assert found.pairs == 10


def test_what_is_missing_is_empty_and_what_is_not_known_is_ignored() -> None:
    assert Summary.from_json({}) == Summary()
    told = {"accuracy": None, "batches": {"done": 1}, "latency_ms": {"batch": {"count": 2}}, "envelope": {"a": 1}}
    read = Summary.from_json(told)
    assert (read.accuracy, read.batches, read.latency_ms.batch) == ({}, {"done": 1}, Description(count=2))


@pytest.mark.parametrize("told", [{"batches": {"done": "many"}}, {"latency_ms": [1]}, {"accuracy": {"map": 0.5}}])
def test_what_makes_no_sense_is_refused(told: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Summary.from_json(told)


def test_reading_a_summary_needs_no_numpy() -> None:
    import subprocess
    import sys

    code = "import sys, mlotel_cli.summary; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
