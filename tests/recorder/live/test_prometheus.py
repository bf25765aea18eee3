"""The text of a scrape, read back by prometheus_client's own parser."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mlotel_cli.recorder.live.prometheus import metric_name, render
from mlotel_cli.recorder.measurements import Family, HistogramPoint, Point

IDENTITY = {"service.name": "lpr", "mlotel.run.id": "abc", "git.commit": None}


def parse(*families: Family, identity=IDENTITY) -> dict:
    text = render(families, identity).decode()
    return {metric.name: metric for metric in text_string_to_metric_families(text)}


def samples(metric) -> list[tuple[str, dict, float]]:
    return [(sample.name, dict(sample.labels), sample.value) for sample in metric.samples]


@pytest.mark.parametrize(
    ("name", "kind", "unit", "expected"),
    [
        ("traces.span.metrics.duration", "histogram", "s", "traces_span_metrics_duration_seconds"),
        ("traces.span.metrics.calls", "counter", "{call}", "traces_span_metrics_calls"),
        ("process.cpu.time", "counter", "s", "process_cpu_time_seconds"),
        ("process.memory.usage", "gauge", "By", "process_memory_usage_bytes"),
        ("hw.gpu.utilization", "gauge", "1", "hw_gpu_utilization_ratio"),
        ("hw.power", "gauge", "W", "hw_power_watts"),
        ("hw.temperature", "gauge", "Cel", "hw_temperature_celsius"),
        ("some.count", "counter", "1", "some_count"),
        ("already.bytes", "gauge", "By", "already_bytes"),
        ("odd-name/x", "gauge", "", "odd_name_x"),
    ],
)
def test_names_are_those_of_opentelemetrys_exporters(name, kind, unit, expected):
    assert metric_name(Family(name, kind, unit, "")) == expected


def test_a_counter_a_gauge_and_a_histogram():
    found = parse(
        Family("a.calls", "counter", "{call}", "Calls.", [Point(3, {"span.name": "x"}), Point(4, {"span.name": "y"})]),
        Family("b", "gauge", "By", "Bytes.", [Point(1.5)]),
        Family(
            "c", "histogram", "s", "Time.", bounds=(0.1, 1), histograms=[HistogramPoint([2, 0, 1], 5.5, {"k": "v"})]
        ),
    )
    assert samples(found["a_calls"]) == [
        ("a_calls_total", {"span_name": "x"}, 3),
        ("a_calls_total", {"span_name": "y"}, 4),
    ]
    assert (found["a_calls"].type, found["a_calls"].documentation) == ("counter", "Calls.")
    assert samples(found["b_bytes"]) == [("b_bytes", {}, 1.5)]
    assert samples(found["c_seconds"]) == [
        ("c_seconds_bucket", {"k": "v", "le": "0.1"}, 2),
        ("c_seconds_bucket", {"k": "v", "le": "1.0"}, 2),
        ("c_seconds_bucket", {"k": "v", "le": "+Inf"}, 3),
        ("c_seconds_count", {"k": "v"}, 3),
        ("c_seconds_sum", {"k": "v"}, 5.5),
    ]


def test_the_run_is_on_target_info_only():
    found = parse(Family("b", "gauge", "", "", [Point(1)]))
    assert samples(found["target_info"]) == [("target_info", {"service_name": "lpr", "mlotel_run_id": "abc"}, 1)]
    assert samples(found["b"]) == [("b", {}, 1)]


def test_a_family_without_points_is_left_out():
    assert set(parse(Family("b", "gauge", "", ""))) == {"target_info"}


def test_a_series_given_twice_is_written_once_because_prometheus_refuses_the_whole_scrape():
    twice = [Point(1, {"k": "v"}), Point(2, {"k": "v"})]
    histograms = [HistogramPoint([1], 1, {"k": "v"}), HistogramPoint([2], 1, {"k": "v"})]
    found = parse(Family("b", "gauge", "", "", twice), Family("c", "histogram", "", "", histograms=histograms))
    assert samples(found["b"]) == [("b", {"k": "v"}, 2)]
    assert [sample.value for sample in found["c"].samples if sample.name == "c_count"] == [2]


def test_points_need_not_have_the_same_attributes():
    found = parse(Family("b", "gauge", "", "", [Point(1, {"x": "1"}), Point(2, {"y": "2"})]))
    assert samples(found["b"]) == [("b", {"x": "1", "y": ""}, 1), ("b", {"x": "", "y": "2"}, 2)]


@given(st.text(), st.floats(allow_nan=False))
def test_any_text_and_any_number_come_back(text, value):
    text = text.encode("utf-8", "backslashreplace").decode()
    found = parse(Family("b", "gauge", "", text, [Point(value, {"k": text})]))
    ((_, labels, read),) = samples(found["b"])
    assert (labels["k"], read) == (text, value)


def test_nan_is_written_as_prometheus_reads_it():
    ((_, _, value),) = samples(parse(Family("b", "gauge", "", "", [Point(math.nan)]))["b"])
    assert math.isnan(value)
