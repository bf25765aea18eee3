"""The waterfall as an SVG file."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from mlotel_cli.trace.waterfall import lay_out
from mlotel_cli.trace.waterfall_svg import WIDTH, draw_svg
from tests.support.traces import Trace, pipelined

SVG = "{http://www.w3.org/2000/svg}"


def bars(text: str) -> list[tuple[str, float, float, str]]:
    """Class, x, width and title of each bar."""
    found = []
    for group in ElementTree.fromstring(text).iter(f"{SVG}g"):
        rect, title = group.find(f"{SVG}rect"), group.find(f"{SVG}title")
        assert rect is not None
        assert title is not None
        found.append((rect.attrib["class"], float(rect.attrib["x"]), float(rect.attrib["width"]), title.text or ""))
    return found


def test_bars_lie_to_scale() -> None:
    text = draw_svg(lay_out(pipelined().spans), title="t")
    (whole, x0, width, _), *rest = bars(text)
    assert whole == "batch"
    found = [(kind, round((x - x0) / width * 100, 1), round(w / width * 100, 1)) for kind, x, w, _ in rest]
    assert found == [
        ("waiting", 0, 10),
        ("compute", 10, 30),
        ("compute", 15, 10),
        ("waiting", 40, 20),
        ("compute", 60, 39),
    ]
    assert x0 + width == pytest.approx(WIDTH - 16)


def test_hovering_says_what_it_is() -> None:
    trace = pipelined(3)
    trace.spans[-1].attributes = {"plates": 4}
    titles = [title for *_, title in bars(draw_svg(lay_out(trace.spans), title="t"))]
    assert "waits for reader: 20.0 ms, batch 3" in titles
    assert "reader: 39.0 ms, batch 3, plates=4" in titles


def test_a_failed_bar_is_marked_and_in_the_legend() -> None:
    trace = pipelined()
    assert ">failed</text>" not in draw_svg(lay_out(trace.spans), title="t")
    trace.spans[-1].status, trace.spans[-1].status_message = "ERROR", "no plate"
    text = draw_svg(lay_out(trace.spans), title="t")
    assert ">failed</text>" in text
    assert [(kind, "ERROR no plate" in title) for kind, *_, title in bars(text)][-1] == ("compute failed", True)


def test_it_is_self_contained_and_follows_the_scheme() -> None:
    text = draw_svg(lay_out(pipelined().spans), title="t")
    assert "<script" not in text
    assert "href" not in text
    assert [url for url in re.findall(r"url\((.*?)\)|https?://[^\"]*", text) if url] == ["#hatch"]
    assert "prefers-color-scheme: dark" in text
    for legend in (">compute</text>", ">waiting in a queue</text>"):
        assert legend in text


def test_names_are_text_and_never_markup() -> None:
    trace = Trace(0, 0, 10)
    trace.add("<b>&\"'", 0, 10, thread="<i>", attributes={"path": "</svg>"})
    text = draw_svg(lay_out(trace.spans), title="</title>")
    assert ElementTree.fromstring(text).attrib["aria-label"] == "</title>"
    assert any("</svg>" in title for *_, title in bars(text))


def test_everything_lies_inside_the_picture() -> None:
    traces = [pipelined(n, 10.0 * n) for n in range(6)]
    root = ElementTree.fromstring(draw_svg(lay_out([s for t in traces for s in t.spans]), title="x" * 300))
    height = float(root.attrib["height"])
    for rect in root.iter(f"{SVG}rect"):
        if "x" in rect.attrib:
            assert 0 <= float(rect.attrib["x"]) <= WIDTH - float(rect.attrib["width"]) + 1
            assert 0 <= float(rect.attrib["y"]) <= height - float(rect.attrib["height"])


def test_what_xml_cannot_hold_is_left_out() -> None:
    message = "\x1b[31mno\x1b[0m plate\x00\nat all \ufffe\ud800"
    trace = Trace(0, 0, 10, status="ERROR", status_message=message)
    trace.add("a\x01b", 0, 10, thread="c\x02d", attributes={"log": "e\x03f"})
    text = draw_svg(lay_out(trace.spans), title="t\x04")
    titles = [title for *_, title in bars(text)]
    assert "ERROR no plate at all," in titles[0]
    assert titles[1].startswith("a b: ")
    assert titles[1].endswith("log=e f")
    text.encode()


def test_wide_characters_have_room() -> None:
    def left(thread: str) -> float:
        trace = Trace(0, 0, 10)
        trace.add("work", 0, 10, thread=thread)
        return bars(draw_svg(lay_out(trace.spans), title="t"))[0][1]

    assert left("\u8eca\u4e21\u691c\u51fa\u5668") == left("ten_letter") > left("five5")


def test_thousands_of_spans_take_no_time_each() -> None:
    trace = Trace(0, 0, 3000)
    for n in range(3000):
        trace.add("call", n, n + 0.9, thread="t")
    picture = lay_out(trace.spans)
    lanes = picture.lanes
    reads = 0

    class Counted(list[object]):
        def __iter__(self) -> Iterator[object]:
            nonlocal reads
            reads += 1
            return super().__iter__()

    for lane in lanes:
        lane.bars = Counted(lane.bars)  # type: ignore[assignment]
    assert draw_svg(picture, title="t").count("<g>") == 3001
    assert reads < 10
