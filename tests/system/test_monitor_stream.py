"""`mlotel monitor source=video` on a real RTSP stream over the loopback interface: a camera that comes and goes."""

from pathlib import Path

import pytest

from tests.support.camera import Camera
from tests.support.monitoring import Monitor, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

PIPELINE = """
import torch


class Means:
    '''Takes frames as the pipelines of the examples do: uint8 (B, 3, H, W).'''

    def __init__(self):
        self.stages = {"mean": self.mean}

    def mean(self, frames_BCHW):
        assert frames_BCHW.dtype == torch.uint8 and frames_BCHW.shape[1:] == (3, 48, 64)
        return frames_BCHW.float().mean((1, 2, 3))
"""


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("project")
    (project / "means.py").write_text(PIPELINE)
    (project / "conf" / "pipeline").mkdir(parents=True)
    (project / "conf" / "pipeline" / "means.yaml").write_text("_target_: means.Means\n")
    return project / "conf"


def watching(conf: Path, url: str, *more: str) -> tuple[str, ...]:
    words = ("--config-dir", str(conf), "pipeline=means", "source=video", f"source.uri={url}", "source.timeout_s=1.5")
    return (*words, "source.max_delay_s=1", "source.batch_size=4", *more)


def connections_of(monitor: Monitor) -> float:
    return monitor.metric("mlotel_source_reconnects_total")


def test_a_camera_that_falls_silent_and_comes_back(tmp_path: Path, conf: Path) -> None:
    with Camera() as camera, Monitor(tmp_path, *watching(conf, camera.url)) as monitor:
        monitor.wait_for_batches(10)
        assert monitor.get("/readyz")[0] == 200

        camera.silent.set()
        wait_until(lambda: monitor.metric("mlotel_source_connected") == 0 and monitor.get("/readyz")[0] == 503)
        camera.silent.clear()
        wait_until(lambda: connections_of(monitor) == 1)
        wait_until(lambda: monitor.get("/readyz")[0] == 200)

        camera.garbled.set()
        wait_until(lambda: monitor.metric("mlotel_source_dropped_total", reason="corrupt") > 5)
        camera.garbled.clear()

        camera.hang_up()
        wait_until(lambda: connections_of(monitor) >= 2)
        before = monitor.num_batches()
        monitor.wait_for_batches(before + 10)
        assert monitor.end() == 0, monitor.printed
    source, rows = monitor.info["source"], monitor.result.batches
    assert source["reconnects"] >= 2
    assert source["dropped"]["corrupt"] > 5
    assert source["received"] == rows["size"].sum() + sum(source["dropped"].values()) - source["dropped"]["corrupt"]
    assert "source: lost: nothing came for 1.5 s; it is tried again and again" in monitor.printed
    assert "source: connected again after" in monitor.printed


def test_a_camera_that_is_not_there_yet(tmp_path: Path, conf: Path) -> None:
    with Camera() as gone:
        port, url = gone.port, gone.url
    with Monitor(tmp_path, *watching(conf, url)) as monitor:
        wait_until(lambda: "source: cannot be reached yet: Connection refused" in monitor.printed)
        assert monitor.get("/readyz")[0] == 503
        with Camera(port=port):
            monitor.wait_for_batches(5)
            assert monitor.end() == 0, monitor.printed
    assert monitor.info["source"]["reconnects"] == 0
    assert monitor.printed.count("cannot be reached yet") == 1


def test_it_ends_at_once_while_no_camera_answers_and_keeps_the_password(tmp_path: Path, conf: Path) -> None:
    with Camera() as gone:
        url = gone.url.replace("://", "://guard:s3cr3t@")
    words = watching(conf, url, "source.max_delay_s=600", "tracker.mode=offline")
    with Monitor(tmp_path, *words) as monitor:
        wait_until(lambda: "cannot be reached yet" in monitor.printed)
        served = [monitor.get(path)[1] for path in ("/", "/metrics", "/readyz")]
        assert monitor.end() == 0, monitor.printed
    info = monitor.info
    assert (info["summary"]["batches"], info["status"]) == ({}, "complete")
    assert "nothing came from the source: Connection refused" in monitor.printed
    assert all(served)
    assert "s3cr3t" not in " ".join(served)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if b"s3cr3t" in path.read_bytes()] == []
    assert any(path.suffix == ".wandb" for path in files)
    assert any("://***@" in path.read_text() for path in files if path.name == "config.yaml")


def test_a_camera_that_cannot_be_opened_and_is_not_tried_again(tmp_path: Path, conf: Path) -> None:
    with Camera() as gone:
        url = gone.url
    with Monitor(tmp_path, *watching(conf, url, "source.reconnect=false")) as monitor:
        assert monitor.process.wait(60) == 1, monitor.printed
    assert f"source.uri={url}: it cannot be opened: Connection refused" in monitor.printed
    assert monitor.info["status"] == "failed"
