"""Spans become annotations of torch.profiler: names, batches across threads, the current span."""

import threading
from typing import Any

import pytest
from opentelemetry import trace

from mlotel_cli.records import BATCH_INDEX, KIND
from mlotel_cli.telemetry.backends.torch_ranges import TorchRange, TorchRanges
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.tracer import Provider


class Annotation:
    """A fake of torch.profiler.record_function that notes its label on entry and exit."""

    seen: list[tuple[str, str]] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, label: str) -> None:
        self.label = label

    def __enter__(self) -> None:
        self.seen.append(("begin", self.label))

    def __exit__(self, *_error: Any) -> None:
        self.seen.append(("end", self.label))


@pytest.fixture(autouse=True)
def annotations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    Annotation.seen.clear()
    monkeypatch.setattr("torch.profiler.record_function", Annotation)
    return Annotation.seen


@pytest.fixture
def backend() -> TorchRanges:
    return TorchRanges(faults=Faults())


@pytest.fixture
def tracer(backend: TorchRanges) -> trace.Tracer:
    return Provider(backend).get_tracer("test")


def labels(annotations: list[tuple[str, str]]) -> list[str]:
    return [label for what, label in annotations if what == "begin"]


def test_a_label_has_category_batch_and_name(tracer: trace.Tracer, annotations: list[tuple[str, str]]):
    with (
        tracer.start_as_current_span("batch", attributes={BATCH_INDEX: 7}),
        tracer.start_as_current_span("queue a|b", attributes={KIND: "queue"}),
        tracer.start_as_current_span("GET", kind=trace.SpanKind.CLIENT),
    ):
        pass
    assert labels(annotations) == ["mlotel|batch|7|batch", "mlotel|queue||queue a|b", "mlotel|client||GET"]
    assert [label for what, label in annotations if what == "end"] == labels(annotations)[::-1]


def test_a_batch_is_current_while_it_is_entered_and_not_after(tracer: trace.Tracer):
    with tracer.start_as_current_span("batch", attributes={BATCH_INDEX: 7}) as root:
        with tracer.start_as_current_span("stage"):
            assert trace.get_current_span() is root
        assert trace.get_current_span() is root
    assert trace.get_current_span() is trace.INVALID_SPAN
    with pytest.raises(KeyError), tracer.start_as_current_span("batch", attributes={BATCH_INDEX: 8}):
        raise KeyError
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_only_another_thread_repeats_the_batch(tracer: trace.Tracer, annotations: list[tuple[str, str]]):
    with tracer.start_as_current_span("batch", attributes={BATCH_INDEX: 7}) as root:
        given = trace.set_span_in_context(root)
        with tracer.start_as_current_span("here", context=given):
            pass

        def work() -> None:
            with tracer.start_as_current_span("there", context=given):
                pass

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert labels(annotations)[1:] == ["mlotel|internal||here", "mlotel|internal|7|there"]


def test_a_decorator_annotates_every_call(tracer: trace.Tracer, annotations: list[tuple[str, str]]):
    @tracer.start_as_current_span("stage")
    def stage(value: int) -> int:
        return value + 1

    assert [stage(1), stage(2)] == [2, 3]
    assert labels(annotations) == ["mlotel|internal||stage"] * 2


def test_a_started_span_is_left_out_and_counted(tracer: trace.Tracer, backend: TorchRanges):
    assert tracer.start_span("stage") is trace.INVALID_SPAN
    assert backend.faults.counts() == {"started": 1}


def test_the_span_is_one_that_keeps_nothing(tracer: trace.Tracer):
    with tracer.start_as_current_span("stage") as span:
        span.set_attribute("a", 1)
        assert isinstance(span, TorchRange)
        assert not span.is_recording()
        assert not span.get_span_context().is_valid
