"""Users, passwords and tokens in URLs and headers are hidden wherever they are saved or shown."""

import pytest

from mlotel_cli.config.credentials import hide, hide_in, hide_override


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.5:554/stream1", "rtsp://***@10.0.0.5:554/stream1"),
        ("rtsp://admin@gate/1", "rtsp://***@gate/1"),
        ("rtsp://:secret@gate/1", "rtsp://***@gate/1"),
        ("rtsp://admin:se@cret@gate/1", "rtsp://***@gate/1"),
        ("rtsp://admin:se%2Fcret@[::1]:554/1", "rtsp://***@[::1]:554/1"),
        ("rtsp://admin:se/cr?e#t@gate/1", "rtsp://***@gate/1"),
        ("rtsp://admin:12/secret@gate/1", "rtsp://admin:12/secret@gate/1"),  # a port
        ("http://gate/video.cgi?user=me&pwd=secret&size=1", "http://gate/video.cgi?user=me&pwd=***&size=1"),
        ("http://gate?access_token=secret", "http://gate?access_token=***"),
        ("rtsp://gate/user=admin_password=secret_channel=1", "rtsp://gate/user=admin_password=***"),
        ("source.loop=true,source.uri=rtsp://a:b@gate/1", "source.loop=true,source.uri=rtsp://***@gate/1"),
        ("- source.uri='rtsp://a:b@gate/1'\n- x=1", "- source.uri='rtsp://***@gate/1'\n- x=1"),
        ("from rtsp://a:b@one/1 to http://c:d@two", "from rtsp://***@one/1 to http://***@two"),
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
        ("http://gate:8080/@me/1", "http://gate:8080/@me/1"),
        ("http://gate/clip.mp4?start=10", "http://gate/clip.mp4?start=10"),
        (r"uri=rtsp\://a\:b@gate/1", r"uri=rtsp\://***@gate/1"),
        ("someone@example.org", "someone@example.org"),
        ("no URL: pwd=secret", "no URL: pwd=secret"),
    ],
)
def test_a_text(text: str, shown: str) -> None:
    assert hide(text) == shown
    assert hide(shown) == shown


def test_a_configuration() -> None:
    config = {"source": {"uri": "rtsp://a:b@gate/1", "loop": True}, "others": ["http://c:d@two", 1, None]}
    assert hide_in(config) == {
        "source": {"uri": "rtsp://***@gate/1", "loop": True},
        "others": ["http://***@two", 1, None],
    }


def test_headers_are_shown_by_name_only() -> None:
    otlp = {"endpoint": "http://c:d@two:4318", "headers": {"authorization": "Bearer x", "none": None}}
    assert hide_in({"telemetry": {"otlp": otlp, "headers": "x"}, "headers": {"a": "b"}}) == {
        "telemetry": {
            "otlp": {"endpoint": "http://***@two:4318", "headers": {"authorization": "***", "none": None}},
            "headers": "x",
        },
        "headers": {"a": "b"},
    }


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("source.uri=rtsp://a:b@gate/1", "source.uri=rtsp://***@gate/1"),
        ("+telemetry.otlp.headers.authorization=Bearer x", "+telemetry.otlp.headers.authorization=***"),
        (
            "telemetry.otlp.headers={authorization: Bearer x, a: 'b, c'}",
            "telemetry.otlp.headers={authorization: ***, a: ***}",
        ),
        ("~telemetry.otlp.headers", "~telemetry.otlp.headers"),
        ("eval.repeats=2", "eval.repeats=2"),
    ],
)
def test_an_override(override: str, shown: str) -> None:
    assert hide_override(override) == shown


def test_a_group_around_the_headers_is_hidden_whole() -> None:
    assert hide_override("telemetry.otlp={headers:{a:b},endpoint:null}") == "telemetry.otlp=***"
    assert hide_override("+telemetry={otlp:{headers:{a:b}}}") == "+telemetry=***"
    assert hide_override("telemetry.otlp={endpoint:null}") == "telemetry.otlp={endpoint:null}"
    assert hide_override("telemetry=off") == "telemetry=off"


@pytest.mark.parametrize("value", ["${oc.env:KEY}", "Bearer ${oc.env:KEY}"])
def test_what_says_only_where_a_key_is_stays(value: str) -> None:
    config = {"telemetry": {"otlp": {"headers": {"a": value, "b": f"mine{value}"}}}}
    assert hide_in(config)["telemetry"]["otlp"]["headers"] == {"a": value, "b": "***"}
    assert hide_override(f"telemetry.otlp.headers.a='{value}'") == f"telemetry.otlp.headers.a='{value}'"
