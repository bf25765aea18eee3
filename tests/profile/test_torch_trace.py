"""A trace written by hand, in the form of torch 2.4 and later, and one written by torch.profiler here."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli.errors import DataError
from mlotel_cli.profile.attribution import attribute
from mlotel_cli.profile.stages import by_batch
from mlotel_cli.profile.torch_trace import read_timeline
from mlotel_cli.records import BATCH_INDEX
from mlotel_cli.telemetry.backends.torch_ranges import TorchRanges, TraceFile
from mlotel_cli.telemetry.tracer import Provider


def event(category: str, name: str, ts: float, dur: float, *, tid: Any = 5, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": ts, "dur": dur, "pid": 5, "tid": tid, "args": args}


def write(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"baseTimeNanoseconds": 1_700_000_000_000_000_000, "traceEvents": list(events)}))
    return path


def test_ranges_launches_kernels_and_copies(tmp_path: Path):
    path = write(
        tmp_path / "trace.json",
        event("user_annotation", "mlotel|batch|3|batch", 100.0, 50.0),
        event("user_annotation", "mlotel|internal||reader", 110.0, 20.5),
        event("user_annotation", "another library's", 100.0, 50.0),
        event("gpu_user_annotation", "mlotel|internal||reader", 140.0, 20.0, tid=7),
        event("cuda_runtime", "cudaLaunchKernel", 112.0, 1.0, correlation=41),
        event("cuda_runtime", "cudaMemcpyAsync", 114.0, 1.0, correlation=42),
        event("cuda_runtime", "cudaStreamSynchronize", 120.0, 4.0, correlation=43),
        event("kernel", "gemm", 140.25, 10.0, tid=7, correlation=41, device=0, stream=7),
        event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 155.0, 5.0, tid=7, correlation=42, device=0, bytes=64),
        event("cpu_op", "aten::mm", 111.0, 5.0),
        {"ph": "M", "name": "process_name"},
    )

    attributed = attribute(read_timeline(path))

    assert attributed.timeline.epoch_offset_ns == 1_700_000_000_000_000_000
    stage = by_batch(attributed)[3]["reader"]
    assert stage.host_ns == 20_500
    (work,) = stage.work
    assert (work.kernels, work.kernel_ns) == (1, 10_000)
    assert work.copies == {"Host-to-Device": (64, 5_000, 1)}
    assert (work.extent_ns, work.idle_ns, work.gaps) == (19_750, 4_750, 1)  # 140.25-160, pause 150.25-155
    assert (work.syncs, work.sync_ns) == (1, 4_000)


def test_a_launch_from_a_worker_of_the_stage_is_the_stages(tmp_path: Path):
    path = write(
        tmp_path / "trace.json",
        event("user_annotation", "mlotel|batch|3|batch", 100.0, 50.0),
        event("user_annotation", "mlotel|internal||reader", 110.0, 20.0),
        event("cuda_runtime", "cudaLaunchKernel", 112.0, 1.0, tid=6, correlation=41),
        event("kernel", "gemm", 140.0, 10.0, tid=7, correlation=41, device=0, stream=7),
    )
    (work,) = by_batch(attribute(read_timeline(path)))[3]["reader"].work
    assert (work.kernels, work.kernel_ns) == (1, 10_000)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "x"}]}'])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(DataError, match="cannot be read as a trace of torch"):
        read_timeline(path)


@pytest.mark.slow
def test_what_torch_writes_is_read(tmp_path: Path):
    import torch

    backend = TorchRanges()
    tracer = Provider(backend).get_tracer("test")
    with TraceFile(tmp_path / "trace.json"):
        for index in range(3):
            with tracer.start_as_current_span("batch", attributes={BATCH_INDEX: index}):
                with tracer.start_as_current_span("reader"):
                    torch.ones(8) @ torch.ones(8)
                with tracer.start_as_current_span("queue writer", attributes={"mlotel.kind": "queue"}):
                    pass
                tracer.start_span("started").end()

    table = by_batch(attribute(read_timeline(tmp_path / "trace.json")))

    assert {index: list(stages) for index, stages in table.items()} == {
        index: ["reader", "writer"] for index in (0, 1, 2)
    }
    assert all(stages["reader"].host_ns > 0 and stages["writer"].queue_ns > 0 for stages in table.values())
    assert backend.faults.counts() == {"started": 3}
