"""Each stage has a stream; a stage reads values only after they are written, and the host never waits."""

import contextlib
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from mlotel_cli.execute import Finished, Inference, Numbered, PipelinedExecutor
from mlotel_cli.execute.streams import CudaStream, CudaStreams, HostStreams
from mlotel_cli.records import Batch
from tests.support.fake_cuda import FakeCuda, Stream, Tensor


@dataclass
class Scene:
    """A value of a real pipeline, with tensors inside."""

    frames: Tensor
    boxes: list[Any]


def pipeline(cuda: FakeCuda, weights: Tensor) -> dict[str, Any]:
    def detect(frames: Tensor) -> Scene:
        frames.read()
        return Scene(frames, [{"boxes": Tensor(cuda)}])

    def read(scene: Scene) -> tuple[Tensor, Scene]:
        scene.frames.read()
        scene.boxes[0]["boxes"].read()
        return Tensor(cuda), scene

    return {"detect": detect, "read": read}


def run(
    cuda: FakeCuda, streams: CudaStreams, replicas: dict[str, int] | None = None, batches: int = 6
) -> list[Finished]:
    def source() -> Any:
        for index in range(batches):
            yield Numbered(index, 0, Batch(index, ["a"], Tensor(cuda)))

    executor = PipelinedExecutor(
        pipeline(cuda, Tensor(cuda)), inference=Inference("cpu"), streams=streams, replicas=replicas
    )
    with contextlib.closing(executor.run(source())) as running:
        finished = []
        for one in running:
            if one.error is None:
                text, scene = one.output
                text.read()  # as scoring does, on the caller's stream
                scene.frames.read()
            finished.append(one)
    return finished


@pytest.mark.parametrize("replicas", [{}, {"detect": 2, "read": 3}])
def test_every_reader_comes_after_its_writer(replicas: dict[str, int]) -> None:
    cuda = FakeCuda()
    finished = run(cuda, CudaStreams("cuda:1", cuda=cuda), replicas)
    assert [one.error for one in finished] == [None] * 6
    assert len(cuda.made) == (5 if replicas else 2)
    assert cuda.made[0].name.startswith("cuda:1")


@pytest.mark.parametrize("broken", ["wait_event", "record_stream"])
def test_the_fake_notices_what_is_left_out(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    if broken == "wait_event":
        monkeypatch.setattr(Stream, "wait_event", lambda self, event: None)
    else:
        monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    finished = run(cuda, CudaStreams("cuda", cuda=cuda))
    assert [type(one.error) for one in finished] == [AssertionError] * 6


def test_a_run_goes_on_where_the_callers_stream_was() -> None:
    cuda, own = FakeCuda(), Stream("the caller's own")
    with cuda.stream(own):
        weights = Tensor(cuda)  # loaded there, and perhaps not written yet
        seen: list[bool] = []

        def stage(value: Any) -> Any:
            seen.append(cuda.current_stream().after.get(own, 0) >= weights.written)
            return value

        streams = CudaStreams("cuda", cuda=cuda)
        executor = PipelinedExecutor({"one": stage, "two": stage}, inference=Inference("cpu"), streams=streams)
        list(executor.run(iter([Numbered(0, 0, Batch(0, ["a"], None))])))
    assert seen == [True, True]


def test_streams_stay_the_same_from_run_to_run() -> None:
    cuda = FakeCuda()
    streams = CudaStreams("cuda", cuda=cuda)
    run(cuda, streams)
    run(cuda, streams)
    assert len(cuda.made) == 2


def test_a_lane_is_current_while_it_is_entered_and_leaves_other_threads_alone() -> None:
    cuda = FakeCuda()
    stream = CudaStreams("cuda", cuda=cuda).stream("detect")
    elsewhere: list[Stream] = []
    with stream.entered():
        assert cuda.current_stream() is cuda.made[0]
        thread = threading.Thread(target=lambda: elsewhere.append(cuda.current_stream()))
        thread.start()
        thread.join(10)
    assert elsewhere == [cuda.current_stream()]
    assert cuda.current_stream() is not cuda.made[0]


def test_what_is_no_tensor_of_the_device_is_left_alone() -> None:
    cuda = FakeCuda()
    on_host = Tensor(cuda, is_cuda=False)
    stream = Stream("other")
    with cuda.stream(stream):
        CudaStream(cuda, None).receive({"a": [on_host, "text", 1]}, None)
    assert stream not in on_host.kept_for


class Sparse:
    """Like torch's: a stream cannot be recorded on it, only on its component tensors."""

    is_cuda = True

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def record_stream(self, _stream: Stream) -> None:
        raise NotImplementedError("aten::record_stream: SparseCUDA")

    def __getattr__(self, name: str) -> Any:
        if name in self._parts:
            return lambda: self._parts[name]
        raise RuntimeError(f"{name}: expected another layout")


def test_the_memory_of_a_sparse_tensor_is_kept() -> None:
    cuda, stream = FakeCuda(), Stream("other")
    for names in (("_indices", "_values"), ("crow_indices", "col_indices", "values")):
        parts = {name: Tensor(cuda) for name in names}
        with cuda.stream(stream):
            CudaStream(cuda, None).receive([Sparse(**parts)], None)
        assert all(stream in part.kept_for for part in parts.values())
    with pytest.raises(NotImplementedError):
        CudaStream(cuda, None).receive([Sparse()], None)


def test_without_a_device_there_is_nothing_to_do() -> None:
    stream = HostStreams().stream("any")
    with stream.entered():
        stream.receive([1], stream.mark())
    assert stream.mark() is None
