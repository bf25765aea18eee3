"""The status page, as a parser sees it: what is on it, what gets through, what its policy allows."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import jinja2
import pytest

from mlotel_cli.recorder.live.live_state import LiveState
from mlotel_cli.recorder.live.page import Status, environment, number, render_page
from mlotel_cli.recorder.workload import Workload
from mlotel_cli.records import BatchRecord, StageTime
from mlotel_cli.snapshot import SinkHealth
from mlotel_cli.wire import Report, from_plain

VOID = {"meta", "link", "br", "line", "rect", "polyline", "polygon"}
HOSTILE = "<script>alert(1)</script>\"'&\x00\udc80"


class Page(HTMLParser):
    """Text, tags with their attributes, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + " "


def row(batch=0, **fields) -> BatchRecord:
    return BatchRecord(
        **{"batch": batch, "source_batch": batch, "repeat": 0, "start_ns": 0, "size": 4, "status": "done"} | fields
    )


def show(
    live: LiveState | None = None, *, told=None, now=60.0, problem="", identity=None, sinks=None, name="lpr"
) -> str:
    workload = Workload() if told is None else Workload.of(from_plain(told, Report), now=now)
    sinks = {"parquet": SinkHealth(sent=1234)} if sinks is None else sinks
    published = (live or LiveState(now=0.0)).publish(
        now=now, workload=workload, sinks=sinks, http=None, ready=not problem
    )
    status = Status(
        name, "outputs/monitor/x", identity or {"mlotel.run.id": "abc"}, published, problem, round(now * 1e9)
    )
    return render_page(status).body.decode()


def text_of(html: str) -> str:
    page = Page(html)
    assert page.open == []
    return " ".join(page.text.split())


def busy_run(*, name="reader", error="", unit="{plate}", seconds=60) -> LiveState:
    live = LiveState(now=0.0)
    for second in range(seconds):
        live.slow_ms = 100.0
        stages = {name: StageTime(50.0, None, 10.0, 1)}
        live.add(row(second, latency_ms=60.0, stages=stages, data={name: 3.0}, units={name: unit}), now=second)
        live.add(row(1000 + second, latency_ms=250.0, stages={name: StageTime(200.0, calls=1)}, start_ns=0), now=second)
        if error:
            live.add(row(2000 + second, status="failed", error=error), now=second)
        live.advance(now=second + 1.0)
    return live


def test_an_operator_finds_what_happens_now():
    told = {
        "source": {
            "kind": "video",
            "state": "connected",
            "received": 500,
            "dropped": {"full": 3, "corrupt": 0, "warmup": 9},
        },
        "queues": {"source": [2, 8], "reader": [1, 2]},
    }
    text = text_of(show(busy_run(error="stage reader raised ValueError: no crop"), told=told))
    for expected in (
        "lpr ready up 1 min",
        "Throughput 12 items/s 3 batches/s",
        "Latency p50 59.7 ms p95 248 ms",
        "Latency p99 n<368 max 250 ms",
        "Batches 180 720 items",
        "Failed 60 33.33% of batches",
        "Dropped 3 full 3 · video connected, 500 received",
        "Stages · 2 of 8 waiting before the first",
        "reader 49.9 ms 200 ms 25% 10 ms n<72 1 of 2",
        "1 of 2",
        "reader 3 plate mean; median 3",
        "Newest slow batches · above 100 ms",
        "1059 250 ms reader 200 ms 1 min ago",
        "mlotel trace outputs/monitor/x --batch 1059",
        "stage reader raised ValueError: no crop",
        "mlotel trace outputs/monitor/x --batch 2059",
        "parquet ok 1,234 0",
        "run id abc",
    ):
        assert expected in text, expected


def test_waiting_for_the_first_stage_is_in_the_heading_and_no_stage():
    live = LiveState(now=0.0)
    stages = {"source": StageTime(0.0, None, 200.0, 0), "reader": StageTime(5.0, calls=1)}
    live.add(row(latency_ms=205.0, stages=stages), now=0.5)
    live.advance(now=1.0)
    told = {"queues": {"source": [1, 8]}}
    html = show(live, told=told)
    assert "Stages · 1 of 8 waiting before the first, p50 200 ms , p95 n<72" in text_of(html)
    assert "Stages · waiting before the first, p50 200 ms" in text_of(show(live))
    assert re.findall(r'<td data-label="" class="name">(\w+)</td>', html) == ["reader", "parquet"]


def test_before_anything_happened():
    text = text_of(show(now=0.0, problem="the workload has not reported yet"))
    assert "not ready: the workload has not reported yet" in text
    assert "No batch yet." in text
    assert "source not heard of yet" in text
    assert "The first points come after 20 seconds." in text


def test_no_text_of_a_run_gets_through_as_markup():
    told = {
        "source": {"kind": HOSTILE, "state": HOSTILE, "dropped": {HOSTILE: 3}},
        "queues": {HOSTILE: [1, 2]},
    }
    sinks = {HOSTILE: SinkHealth(ok=False, sent=1, lost=2, detail=HOSTILE)}
    identity = {"mlotel.run.id": HOSTILE, "service.name": HOSTILE}
    live = busy_run(name=HOSTILE, error=HOSTILE, unit=HOSTILE)
    html = show(live, told=told, problem=HOSTILE, identity=identity, sinks=sinks, name=HOSTILE)
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert html.count("alert(1)") == html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    allowed = {"class", "href", "id", "role", "hidden", "data-label", "aria-label", "viewbox", "preserveaspectratio"}
    allowed |= {"lang", "charset", "name", "content", "rel", "http-equiv", "width", "height", "points"}
    allowed |= {"x2", "y1", "y2", "scope"}
    assert {name for _, attributes in page.tags for name in attributes} <= allowed


def test_a_name_that_a_template_does_not_know_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'sinks' is undefined"):
        environment().from_string("{{ sinks }}").render()


def test_a_component_escapes_what_it_is_given():
    tile = environment().get_template("components.html").module.tile
    assert "<h2>&lt;b&gt;</h2>" in tile("<b>", "1", "")


def test_the_policy_allows_exactly_the_pages_own_style_and_script():
    html = show()
    reply = render_page(
        Status(
            "x",
            "d",
            {},
            LiveState(now=0.0).publish(now=0.0, workload=Workload(), sinks={}, http=None, ready=True),
            "",
            0,
        )
    )
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    for kind, content in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in reply.policy
    assert reply.policy.startswith("default-src 'none'; ")
    assert "unsafe" not in reply.policy
    assert reply.content_type == "text/html; charset=utf-8"


def test_nothing_is_loaded_from_anywhere():
    html = show(busy_run())
    links = [attributes["href"] for _, attributes in Page(html).tags if "href" in attributes]
    assert sorted(links) == ["data:,", "healthz", "metrics", "readyz"]
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "src=" not in html


def test_a_recorder_that_was_replaced_is_said():
    assert "replaced" not in text_of(show(told={"gaps": {"recorder_restarts": 0, "batches_lost": 0}}))
    text = text_of(show(told={"gaps": {"recorder_restarts": 1, "batches_lost": 12}}))
    assert "The recorder was replaced once; 12 batches went unrecorded." in text
    text = text_of(show(told={"gaps": {"recorder_restarts": 3, "batches_lost": 1}}))
    assert "The recorder was replaced 3 times; 1 batch went unrecorded." in text


def test_a_directory_with_a_space_is_quoted_in_the_command():
    published = busy_run().publish(now=60.0, workload=Workload(), sinks={}, http=None, ready=True)
    html = render_page(Status("lpr", "my runs/x", {}, published, "", 0)).body.decode()
    assert "mlotel trace 'my runs/x' --batch 1059" in text_of(html)


def test_a_long_error_is_shortened():
    live = LiveState(now=0.0)
    live.add(row(1, status="failed", error="x" * 201), now=0.0)
    live.add(row(2, status="failed", error="y" * 200), now=0.0)
    text = text_of(show(live))
    assert "x" * 198 + " ..." in text
    assert "y" * 200 in text


def test_what_keeps_the_focus_is_outside_of_what_is_swapped():
    page = Page(show(busy_run()))
    assert [tag for tag, _ in page.tags].index("footer") > max(
        place for place, (_, attributes) in enumerate(page.tags) if "data-label" in attributes
    )
    html = show(busy_run())
    content = html[html.index('<div id="content">') : html.index("<footer>")]
    assert "<a " not in content
    assert content.count("<div") == content.count("</div>")


def test_red_is_for_what_goes_wrong_now():
    live = LiveState(now=0.0)
    live.add(row(status="failed"), now=0.0)
    live.drop(1)
    live.advance(now=1.0)
    told = {"source": {"dropped": {"full": 1}}}
    assert show(live, told=told).count('<strong class="bad">') == 2
    live.advance(now=100.0)
    assert show(live, told=told).count('<strong class="bad">') == 0


def test_a_sink_that_loses_something_stands_out():
    sink = SinkHealth(ok=False, sent=5, lost=1200, detail="connection refused")
    html = show(sinks={"otlp": sink})
    assert '<span class="bad">failing</span>' in html
    assert '<span class="bad">1,200</span>' in html
    assert "connection refused" in text_of(html)
    assert "refused; 1,500 waiting" in text_of(show(sinks={"otlp": replace(sink, queued=1500)}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0"),
        (1234.5, "1,234"),
        (12.345, "12.3"),
        (0.0123456, "0.0123"),
        (1e-5, "1.0e-05"),
        (-3.0, "-3"),
    ],
)
def test_numbers(value, expected):
    assert number(value) == expected


def test_latencies_are_in_seconds_from_ten_on():
    milliseconds = environment().get_template("components.html").module.milliseconds
    assert milliseconds(9_999.0) == "9,999 <small>ms</small>"
    assert milliseconds(12_340.0) == "12.3 <small>s</small>"
    assert milliseconds(None) == "&ndash;"
