"""Expected values are worked out by hand from the rows, in the comments; times are ns."""

import sqlite3
from pathlib import Path

import pytest

from mlotel_cli.errors import DataError
from mlotel_cli.profile.attribution import Attributed, Work, attribute
from mlotel_cli.profile.nsys_export import read_timeline
from mlotel_cli.profile.stages import CopyFigures, KernelFigures, by_batch, summarise_stages
from tests.support.nsys_file import NEW, OLD, NsysFile

RECORDING = Path(__file__).with_name("data") / "nsys_2022_4_cpu.sqlite"


@pytest.fixture(params=[OLD, NEW])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


def work_of(attributed: Attributed, name: str, batch: int | None = 0) -> Work:
    (found,) = (each for each in attributed.timeline.ranges if each.name == name and each.batch == batch)
    return attributed.work.get(found) or Work()


def write_two_stages(file: NsysFile) -> None:
    """Batch 0 on thread 1: detector 100-400, reader 500-900; all kernels run later than their launch."""
    file.root(0, 0, 1000)
    file.push_pop("detector", 100, 400)
    file.push_pop("reader", 500, 900)
    file.call(3, 120, 130, name="cudaMemcpyAsync_v3020")
    file.copy(3, 140, 200, size=4096, kind=1)
    file.call(1, 150, 160)
    file.kernel(1, 300, 500)
    file.call(2, 200, 210)
    file.kernel(2, 520, 620, name="conv")  # while the host is in the reader already
    file.call(4, 600, 610)
    file.kernel(4, 700, 850)
    file.call(5, 650, 660, tid=2)  # a worker thread of the reader, without a range of its own
    file.kernel(5, 860, 960)
    file.call(6, 880, 895, name="cudaStreamSynchronize_v3020")


def test_work_follows_the_launch_not_the_clock(tmp_path: Path, version: str):
    with NsysFile(tmp_path / "x.sqlite", version) as file:
        write_two_stages(file)

    attributed = attribute(read_timeline(tmp_path / "x.sqlite"))

    # Kernels 1 and 2: 200 + 100. From the copy at 140 to 620: 480, of which 200-300 and 500-520 are idle.
    detector = work_of(attributed, "detector")
    assert (detector.kernels, detector.kernel_ns) == (2, 300)
    assert detector.copies == {"Host-to-Device": (4096, 60, 1)}
    assert (detector.extent_ns, detector.idle_ns, detector.gaps) == (480, 120, 2)
    assert detector.kernel_names == {"gemm": (1, 200), "conv": (1, 100)}
    # Kernels 4 and 5: 150 + 100; 700-960 with a pause 850-860.
    reader = work_of(attributed, "reader")
    assert (reader.kernels, reader.kernel_ns) == (2, 250)
    assert (reader.extent_ns, reader.idle_ns, reader.gaps) == (260, 10, 1)
    assert (reader.syncs, reader.sync_ns) == (1, 15)
    # All of it: 140-960 with pauses 100 + 20 + (620-700) 80 + 10.
    batch = work_of(attributed, "batch")
    assert (batch.kernels, batch.kernel_ns) == (4, 550)
    assert (batch.extent_ns, batch.idle_ns, batch.gaps) == (820, 210, 4)
    assert (attributed.num_unattributed, attributed.num_ambiguous) == (0, 0)


def test_another_stages_work_does_not_make_the_device_idle(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite") as file:
        write_two_stages(file)
        file.call(7, 510, 515)  # in the reader
        file.kernel(7, 505, 515)  # inside the detector's pause of 500-520
        file.kernel(99, 515, 518)  # and so is this one, of no call

    attributed = attribute(read_timeline(tmp_path / "x.sqlite"))

    # Of 500-520 only 500-505 and 518-520 are left.
    assert work_of(attributed, "detector").idle_ns == 100 + 5 + 2


def test_nodes_of_a_cuda_graph_belong_to_its_launch(tmp_path: Path, version: str):
    with NsysFile(tmp_path / "x.sqlite", version) as file:
        file.root(1, 2000, 3000)
        file.push_pop("graphs", 2100, 2300)
        file.call(10, 2150, 2170, name="cudaGraphLaunch_v10000")
        for node, (start, end) in enumerate([(2200, 2250), (2250, 2300), (2320, 2400)], start=1):
            file.kernel(10, start, end, node=node)

    work = work_of(attribute(read_timeline(tmp_path / "x.sqlite")), "graphs", 1)

    assert (work.kernels, work.kernel_ns, work.graphs) == (3, 180, 0)  # 50 + 50 + 80
    assert (work.extent_ns, work.idle_ns, work.gaps) == (200, 20, 1)  # 2200-2400, pause 2300-2320


def test_a_cuda_graph_traced_as_a_whole_is_one_piece(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite", NEW) as file:
        file.root(1, 2000, 3000)
        file.push_pop("graphs", 2100, 2300)
        file.call(10, 2150, 2170, name="cudaGraphLaunch_v10000")
        file.graph(10, 2200, 2400)

    work = work_of(attribute(read_timeline(tmp_path / "x.sqlite")), "graphs", 1)

    assert (work.graphs, work.graph_ns, work.kernels, work.extent_ns) == (1, 200, 0, 200)


def test_a_launch_from_a_thread_without_a_range_is_not_guessed(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite") as file:
        file.root(0, 0, 1000, tid=1)
        file.push_pop("detector", 100, 900, tid=1)
        file.root(1, 0, 1000, tid=2)
        file.push_pop("reader", 100, 900, tid=2)
        file.call(1, 200, 210, tid=3)  # both stages are running
        file.kernel(1, 300, 400)
        file.call(2, 950, 960, tid=3)  # only the two batches are
        file.kernel(2, 970, 980)
        file.kernel(77, 1100, 1107)  # its call was not recorded

    attributed = attribute(read_timeline(tmp_path / "x.sqlite"))

    assert (attributed.num_unattributed, attributed.unattributed_ns, attributed.num_ambiguous) == (3, 117, 2)
    assert work_of(attributed, "detector").kernels == work_of(attributed, "reader", 1).kernels == 0


def test_a_stage_on_another_thread_joins_its_batch_by_payload(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite") as file:
        file.root(4, 0, 1000, tid=1)
        file.push_pop("detector", 100, 300, tid=1)
        file.push_pop("queue reader", 300, 390, tid=2, batch=4, category=3)
        file.push_pop("reader", 400, 700, tid=2, batch=4)
        file.push_pop("inner", 450, 500, tid=2)
        file.call(1, 460, 470, tid=2)
        file.kernel(1, 600, 650)

    attributed = attribute(read_timeline(tmp_path / "x.sqlite"))

    stages = by_batch(attributed)[4]
    assert {name: (stage.host_ns, stage.queue_ns) for name, stage in stages.items()} == {
        "detector": (200, 0),
        "reader": (300, 90),
        "inner": (50, 0),
    }
    for name in ("inner", "reader", "batch"):
        assert work_of(attributed, name, 4).kernel_ns == 50
    assert work_of(attributed, "detector", 4).kernels == 0


def test_a_worker_belongs_to_the_stage_even_while_its_batch_waits_on_another_thread(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite") as file:
        file.root(4, 0, 1000, tid=1)
        file.push_pop("reader", 400, 700, tid=2, batch=4)  # inside the root, which is open on thread 1
        file.call(1, 460, 470, tid=3)
        file.kernel(1, 600, 650)

    attributed = attribute(read_timeline(tmp_path / "x.sqlite"))

    assert work_of(attributed, "reader", 4).kernels == 1
    assert attributed.num_unattributed == 0


def test_ranges_that_may_end_elsewhere_nest_by_time(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite") as file:
        file.root(0, 0, 1000)
        file.start_end("generator", 100, 800)
        file.push_pop("inner", 200, 300)
        file.push_pop("after", 850, 900)

    timeline = attribute(read_timeline(tmp_path / "x.sqlite")).timeline

    parents = {each.name: each.parent.name if each.parent else None for each in timeline.ranges}
    assert parents == {"batch": None, "generator": "batch", "inner": "generator", "after": "batch"}
    assert {each.batch for each in timeline.ranges} == {0}


def test_equal_correlation_ids_of_two_processes_are_two(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite") as file:
        file.root(0, 0, 1000)
        file.push_pop("mine", 100, 200)
        file.push_pop("theirs", 100, 200, pid=8, batch=0)
        file.call(1, 150, 160, pid=8)
        file.call(2, 150, 160)
        file.kernel(2, 300, 310)
        file.kernel(1, 400, 420)  # of process 7, whose call 1 was not recorded

    attributed = attribute(read_timeline(tmp_path / "x.sqlite"))

    assert work_of(attributed, "mine").kernel_ns == 10
    assert work_of(attributed, "theirs").kernels == 0
    assert attributed.unattributed_ns == 20


def test_two_devices_are_counted_apart(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite") as file:
        file.root(0, 0, 1000)
        file.push_pop("both", 100, 200)
        file.call(1, 110, 111)
        file.kernel(1, 200, 300)
        file.call(2, 120, 121)
        file.kernel(2, 400, 500)
        file.call(3, 130, 131)
        file.kernel(3, 250, 450, device=1)  # fills the pause of the other device, which stays idle

    work = work_of(attribute(read_timeline(tmp_path / "x.sqlite")), "both")

    assert (work.extent_ns, work.idle_ns, work.gaps) == (300 + 200, 100, 1)


def test_other_domains_and_ranges_without_an_end_are_left_out(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite") as file:
        file.root(0, 0, 1000)
        file.push_pop("foreign", 100, 200, domain=2)
        file.push_pop("mlotel capture", 0, 2000)
        file.push_pop("cut", 900, None)

    timeline = read_timeline(tmp_path / "x.sqlite")

    assert [each.name for each in timeline.ranges] == ["batch"]
    assert timeline.num_cut == 1


def test_copies_memsets_and_the_date(tmp_path: Path, version: str):
    with NsysFile(tmp_path / "x.sqlite", version) as file:
        file.starts_at(1_700_000_000_000_000_000)
        file.root(0, 0, 1000)
        for correlation, kind in enumerate((1, 2, 8, 2)):
            file.call(correlation, 100, 101)
            file.copy(correlation, 200 + 20 * correlation, 210 + 20 * correlation, size=100, kind=kind)
        file.call(9, 110, 111)
        file.memset(9, 500, 505)

    timeline = read_timeline(tmp_path / "x.sqlite")

    assert timeline.epoch_offset_ns == 1_700_000_000_000_000_000
    assert timeline.version == version
    work = work_of(attribute(timeline), "batch")
    assert work.copies == {
        "Host-to-Device": (100, 10, 1),
        "Device-to-Host": (200, 20, 2),
        "Device-to-Device": (100, 10, 1),
    }
    assert work.memset_ns == 5


def test_stages_json_of_two_batches(tmp_path: Path):
    with NsysFile(tmp_path / "x.sqlite") as file:
        write_two_stages(file)
        file.root(1, 10_000, 11_000)
        file.push_pop("detector", 10_100, 10_200)
        file.call(20, 10_110, 10_120)
        file.kernel(20, 10_150, 10_250)

    stages = summarise_stages(attribute(read_timeline(tmp_path / "x.sqlite")), top_kernels=1)

    detector = stages.stages["detector"]
    device = detector.device
    assert stages.batches == 2
    assert detector.host_ms.p50 == pytest.approx((300 + 100) / 2 / 1e6)
    assert device is not None
    assert device.kernel_ms == pytest.approx((300 + 100) / 2 / 1e6)
    assert device.kernels == (2 + 1) / 2
    assert device.copies["Host-to-Device"] == CopyFigures(bytes=2048, ms=pytest.approx(30e-6), number=0.5)
    assert device.top_kernels == [KernelFigures("gemm", number=1.0, ms=pytest.approx(150e-6))]
    # The device is busy for (360 + 100) / 2 = 230 of (480 + 100) / 2 = 290: 79 %.
    assert detector.verdict == "launch-bound"


def test_a_recording_without_cuda(tmp_path: Path):
    path = tmp_path / "x.sqlite"
    with NsysFile(path) as file:
        write_two_stages(file)
    with sqlite3.connect(path) as connection:
        for table in ("KERNEL", "MEMCPY", "MEMSET", "RUNTIME"):
            connection.execute(f"DROP TABLE CUPTI_ACTIVITY_KIND_{table}")
    connection.close()

    stages = summarise_stages(attribute(read_timeline(path)))

    assert stages.stages["detector"].device is None
    assert stages.stages["detector"].verdict == "host-bound"
    assert stages.stages["detector"].host_ms.mean == pytest.approx(300e-6)


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to be looked at" * 50])
def test_what_is_no_export_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "x.sqlite"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"x\.sqlite cannot be read as an SQLite file of nsys"):
        read_timeline(path)


def test_a_real_recording_on_a_cpu():
    """5 batches of 3 stages, the queue span and a range ended on another thread, recorded by nsys 2022.4."""
    attributed = attribute(read_timeline(RECORDING))

    table = by_batch(attributed)
    assert attributed.timeline.version == "2022.4.2.1"
    assert list(table) == [0, 1, 2, 3, 4]
    for stages in table.values():
        assert list(stages) == ["detector", "reader", "elsewhere", "started"]
        assert stages["reader"].queue_ns > 0
        assert 1_000_000 < stages["detector"].host_ns < 500_000_000  # it slept for 1 ms
    threads = {each.thread for each in attributed.timeline.ranges if each.name == "elsewhere"}
    assert threads.isdisjoint({each.thread for each in attributed.timeline.ranges if each.is_root})


def test_what_the_sources_thread_does_is_of_no_batch_that_has_moved_on(tmp_path: Path):
    """A pipelined executor's source begins a batch and goes on to read the next one."""
    with NsysFile(tmp_path / "x.sqlite") as file:
        for batch, start in ((0, 0), (1, 300)):
            file.start_end("batch", start, start + 900, tid=1, batch=batch, category=2)
            file.start_end("queue reader", start + 10, start + 400, tid=1, batch=batch, category=3)
            file.push_pop("reader", start + 400, start + 800, tid=2, batch=batch)
        file.push_pop("decode", 100, 290, tid=1)
        file.push_pop("upload", 600, 700, tid=1, batch=1)  # opened for a batch
        file.call(3, 650, 660, tid=1)
        file.kernel(3, 660, 670)
        file.call(1, 150, 160, tid=1)
        file.kernel(1, 200, 250)
        file.call(2, 450, 460, tid=1)  # while a reader is open elsewhere
        file.copy(2, 500, 550, size=64, kind=1)

    attributed = attribute(read_timeline(tmp_path / "x.sqlite"))

    assert attributed.num_unattributed == 1
    assert work_of(attributed, "upload", 1).kernels == 1
    assert {each.name: each.batch for each in attributed.timeline.ranges if each.name == "decode"} == {"decode": None}
    stages = by_batch(attributed)
    assert {batch: (each["reader"].host_ns, each["reader"].queue_ns) for batch, each in stages.items()} == {
        0: (400, 390),
        1: (400, 390),
    }
    assert (set(stages[0]), set(stages[1])) == ({"reader"}, {"reader", "upload"})
    assert work_of(attributed, "batch", 0).kernels == 0
    waiting = [each for each in attributed.timeline.ranges if each.name == "queue reader"]
    assert [each.parent is not None and each.parent.batch == each.batch for each in waiting] == [True, True]
