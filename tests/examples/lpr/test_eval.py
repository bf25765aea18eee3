"""The example runs as in its README: `mlotel eval -cd examples/lpr/conf`."""

import json
from pathlib import Path

import pytest
from lpr.datasets import DATA_SETS

from mlotel_cli import read_run
from tests.support.cli import mlotel

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "lpr"
ON_VALIDATION = "mlotel eval -cd examples/lpr/conf"
ON_NIGHT = "mlotel eval -cd examples/lpr/conf data=night"
ON_CROWDED = "mlotel eval -cd examples/lpr/conf data=crowded"
BY_CONDITION = "mlotel eval -cd examples/lpr/conf metrics=by_condition"
STAGES = ["vehicle_detector", "plate_detector", "plate_reader"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def evaluate(tmp_path: Path, *overrides: str, command: str = ON_VALIDATION):
    """Run a command of the README with additional `overrides`."""
    ended = mlotel(
        *command.split()[1:], f"run.dir={tmp_path / 'run'}", "tracker.mode=disabled", "device=cpu",
        "eval.warmup_batches=0", *overrides,
    )  # fmt: skip
    return ended, tmp_path / "run"


def test_one_row_a_batch_with_accuracy_and_latency(tmp_path: Path, clip: Path) -> None:
    ended, run_dir = evaluate(
        tmp_path,
        "data=video",
        f"data.path={clip}",
        f"data.annotations={clip.with_suffix('.json')}",
        "data.batch_size=2",
    )
    assert ended.code == 0, ended.err
    run = read_run(run_dir)
    batches = run.batches
    assert batches["size"].to_list() == [2, 2, 1]
    assert all((batches[f"{stage}.host_ms"] > 0).all() for stage in STAGES)
    assert (batches["data.num_vehicles"] >= batches["data.num_plates"]).all()
    assert batches["data.num_vehicles"].sum() > 0
    assert set(run.summary.accuracy) == {"vehicle_ap50", "plate_ap50", "plate_exact_match", "character_error_rate"}


def test_figures_by_condition(tmp_path: Path, clip: Path) -> None:
    labels = json.loads(clip.with_suffix(".json").read_text())
    for image, condition in zip(labels["images"], ["day", "dusk", "rain", "night", "day"], strict=True):
        image["condition"] = condition
    annotations = tmp_path / "labels.json"
    annotations.write_text(json.dumps(labels))
    ended, run_dir = evaluate(
        tmp_path, "data=video", f"data.path={clip}", f"data.annotations={annotations}", command=BY_CONDITION
    )
    assert ended.code == 0, ended.err
    accuracy = read_run(run_dir).summary.accuracy
    assert len(accuracy) == 16
    assert accuracy["rain_vehicle_ap50"].value > 0.5


@pytest.mark.parametrize(("command", "name"), [(ON_NIGHT, "night"), (ON_CROWDED, "crowded")])
def test_each_committed_data_set_is_read(tmp_path: Path, command: str, name: str) -> None:
    ended, run_dir = evaluate(tmp_path, "eval.max_batches=1", "data.batch_size=2", command=command)
    assert ended.code == 0, ended.err
    assert read_run(run_dir).batches["size"].to_list() == [2]
    check_labels(name)


def check_labels(name: str) -> None:
    labels = json.loads((EXAMPLE / "data" / f"{name}.json").read_text())
    assert len(labels["images"]) == sum(spec.num_frames for spec in DATA_SETS[name].clips())


def test_a_missing_video_is_one_clear_line(tmp_path: Path) -> None:
    ended, _ = evaluate(tmp_path, "data=video", "data.path=nowhere.mp4", "data.annotations=nowhere.json")
    assert ended.code in (1, 2)
    assert "nowhere.mp4" in ended.err
    assert "Traceback" not in ended.err


def test_the_validation_video_reaches_the_figures_in_the_readme(tmp_path: Path) -> None:
    ended, run_dir = evaluate(tmp_path)
    assert ended.code == 0, ended.err
    run = read_run(run_dir)
    assert run.batches["size"].sum() == 640
    check_labels("validation")
    assert all(name in ended.out for name in ("plate_exact_match", "vehicle_detector", "plate_reader"))
    accuracy = {name: figure.value for name, figure in run.summary.accuracy.items()}
    assert accuracy["vehicle_ap50"] >= 0.95
    assert accuracy["plate_ap50"] >= 0.90
    assert accuracy["plate_exact_match"] >= 0.85
    assert accuracy["character_error_rate"] <= 0.05
    readme = (EXAMPLE / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith("| validation |"))
    stated = [float(cell) for cell in row.split("|")[3:7]]
    assert stated == pytest.approx(list(accuracy.values()), abs=0.003)
